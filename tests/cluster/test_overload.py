"""Several clients send a real target far more requests than it can run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.topics import Topics
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import Listener, free_port, run_patiently, running

pytestmark = pytest.mark.timeout(120)

TOPICS = Topics("overload")
NUM_CLIENTS, NUM_ASKED, MAX_TOKENS = 3, 60, 12
MAX_GROWTH_BYTES = 48 << 20


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _text(client: Client, request_id: str, **fields: float) -> str:
    request = Request(
        "", request_id, "completion", "def main():", max_tokens=MAX_TOKENS, ignore_eos=True,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, FinalMessage):
                return step.text
    raise AssertionError("no final message")


async def _outcome(client: Client, number: int) -> str:
    """The text, or the code of a refusal that has a `retry_after`."""
    try:
        return await _text(client, str(number), deadline_s=60.0)
    except RequestError as refusal:
        return refusal.code if refusal.retry_after_s else f"{refusal.code} without retry_after"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_each_request_ends_once_and_memory_does_not_grow() -> None:
    async def scenario() -> None:
        target = ("--role", "target", "--model", zoo.TARGET, "--threads", "1")
        plan = ClusterPlan("overload", LocalNode("t", target), (), broker_port=free_port())
        async with contextlib.AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(forked_cluster(plan))
            clients = [
                await stack.enter_async_context(
                    Client(cluster.broker_url, plan.cluster, retry_patience_s=0)
                )
                for _ in range(NUM_CLIENTS)
            ]
            listener = Listener(
                BrokerAddress.parse(cluster.broker_url), (f"{TOPICS.root}/response/#",), "listener"
            )
            await stack.enter_async_context(running(listener.mqtt_client.run()))
            await listener.mqtt_client.connected()
            text = await _text(clients[0], "before")
            before = _resident_bytes(cluster.pid("t"))
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(_outcome(client, number))
                    for number in range(NUM_ASKED)
                    for client in clients
                ]
            outcomes = Counter(task.result() for task in asked)
            assert set(outcomes) == {text, "overloaded"}
            assert outcomes[text] >= 8 + 64
            assert await _text(clients[0], "after") == text
            await listener.expect(TOPICS.response(clients[0].client_id, "after"))
            finals = Counter(m.topic for m in listener.received if "/mark-" not in m.topic)
            assert set(finals.values()) == {1}
            assert len(finals) == NUM_CLIENTS * NUM_ASKED + 2
            assert _resident_bytes(cluster.pid("t")) - before < MAX_GROWTH_BYTES
            # The state is published once a second, so the first one may be too old.
            while (state := (await clients[0].nodes())["t"].state)["answers"] < outcomes[text] + 2:
                await clients[0].changed()
            assert state["counters"]["refused"]["overloaded"] == outcomes["overloaded"]

    run_patiently(scenario())
