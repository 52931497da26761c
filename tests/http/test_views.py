"""What a node shows of itself over HTTP: metrics, the cluster's events, the page's files."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.http.cluster_events import MAX_READERS, ClusterEvents
from edgecosine.metrics.families import target_metrics
from edgecosine.metrics.history import KEPT_SAMPLES, History
from edgecosine.metrics.measurements import Measurements
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from tests.metrics.test_metrics import STATE
from tests.support.http import HttpHarness, http_harness
from tests.support.mqtt import PATIENCE_S, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


async def messages(response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    """The data of a stream's events."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def watched(home: HttpHarness, history: History) -> AsyncIterator[ClusterEvents]:
    """The events of the harness' cluster, at its frontend."""
    url = home.home.broker.url
    events = ClusterEvents(
        lambda: Client(url, "home"), cluster="home", node_id="t1", history=history
    )
    home.frontend.views.events = events.read
    async with running(events.run()):
        yield events


def test_page_has_a_strict_policy_and_all_its_files() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            page = await home.http.get("/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            # Neither inline code nor another server.
            assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=|https?://", page.text)
            seen, left = {"/"}, set(re.findall(r"/page/[\w.-]+", page.text))
            while left:
                path = left.pop()
                file = await home.http.get(path)
                assert file.status_code == 200, path
                seen.add(path)
                found = re.findall(r'from "\./([\w.-]+)"', file.text)
                left |= {f"/page/{name}" for name in found} - seen
            assert {"/page/page.js", "/page/page.css", "/page/chat.js"} <= seen

    run(scenario())


def test_metrics_wait_for_the_model_and_are_prometheus_text() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            assert (await home.http.get("/metrics")).status_code == 503
            wrong = await home.http.post("/metrics")
            assert wrong.status_code == 405
            assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}
            home.frontend.views.metrics = lambda: target_metrics(Measurements(), STATE, "1.0")
            found = await home.http.get("/metrics")
            assert found.headers["content-type"].startswith("text/plain; version=")
            names = {family.name for family in text_string_to_metric_families(found.text)}
            assert "vllm:num_requests_running" in names

    run(scenario())


def test_events_say_that_the_model_is_loaded_then_show_history_and_nodes() -> None:
    async def scenario() -> None:
        measured = Measurements()
        measured.num_generated_tokens = 7
        history = History(measured)
        history.sample(1.0)
        async with http_harness() as home, home.http.stream("GET", "/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = messages(response)
            assert await anext(events) == {"loading": True}
            async with watched(home, history):
                node = NodeStatusPublisher(
                    broker=BrokerAddress.parse(home.home.broker.url), cluster="home", node_id="d1"
                )
                async with running(node.run()):
                    node.publish_presence("ready")
                    node.publish_state({"role": "drafter", "model": "tiny"})
                    found = [event async for event in _until(events, "d1", "ready")]
                assert found[0]["history"][0] == [1.0, 7, 0, 0, 0]
                assert found[-1]["nodes"]["d1"]["state"] == {"role": "drafter", "model": "tiny"}
                assert found[-1]["is_online"]
                gone = [event async for event in _until(events, "d1", "offline")]
                assert gone[-1]["nodes"]["d1"]["status"] == "offline"

    run(scenario())


async def _until(
    events: AsyncIterator[Mapping[str, Any]], node: str, status: str
) -> AsyncIterator[Mapping[str, Any]]:
    """The events up to the one that shows a node with a status."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            yield event
            if event.get("nodes", {}).get(node, {}).get("status") == status:
                return


def test_broker_is_connected_only_while_somebody_reads_and_readers_are_bounded() -> None:
    opened, closed = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        async with http_harness() as home:

            class Watched(Client):
                async def __aenter__(self) -> Self:
                    opened.set()
                    return await super().__aenter__()

                async def __aexit__(self, *args: object) -> None:
                    await super().__aexit__(None, None, None)
                    closed.set()

            events = ClusterEvents(
                lambda: Watched(home.home.broker.url, "home"),
                cluster="home", node_id="t1", history=History(Measurements()),
            )  # fmt: skip
            async with running(events.run()):
                await asyncio.sleep(0)
                assert not opened.is_set()
                readers = [events.read() for _ in range(MAX_READERS)]
                for reader in readers:
                    assert "history" in json.loads(await anext(reader))
                async with aclosing(events.read()) as one_more:
                    with pytest.raises(RequestError, match="pages are open"):
                        await anext(one_more)
                async with asyncio.timeout(PATIENCE_S):
                    await opened.wait()
                    for reader in readers:
                        await reader.aclose()
                    await closed.wait()

    run(scenario())


def test_history_is_bounded() -> None:
    history = History(Measurements())
    for second in range(KEPT_SAMPLES + 9):
        history.sample(float(second))
    assert len(history.samples) == KEPT_SAMPLES
    assert history.samples[0].at_s == 9.0
