"""Measures the time that HTTP adds to a request, compared with the Python client over MQTT.

Both take turns at requesting the same streamed completion from one target without drafters, one
request at a time. The prompt is cached, so the times differ only by the transports.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.bench.http.stream_client import StreamClient, StreamTimes
from edgecosine.lab.figures import Figure, Keep, counted, interval
from edgecosine.lab.network.hosts import free_port
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, local_plan
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta

_ALONE: Final = "target-alone"
_HOST: Final = "127.0.0.1"
_ROUNDS: Final = 4
_STREAM_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Numbers and lengths of requests; core lists have the form of `edgecosine node --cores`."""

    pairs: int
    streams: int
    max_tokens: int
    ballast: int
    target_cores: str


async def run_http(
    settings: HttpSettings, notify: Callable[[str], None], keep: Keep
) -> dict[str, Figure]:
    """Measure pairs of requests, then open many streams at once, several times.

    Returns the figures, which are also saved.

    Raises LabError when texts differ.
    """
    port = free_port()
    plan = _with_room(settings.streams, local_plan(
        zoo.TARGET, (), cluster="http", ballast=settings.ballast,
        target_cores=settings.target_cores, drafter_cores="", broker=None, broker_port=free_port(),
        http=f"{_HOST}:{port}",
    ))  # fmt: skip
    runs: list[dict[str, Any]] = []
    loads = [os.getloadavg()[0]]
    async with (
        LocalCluster(plan, notify) as cluster,
        Client(cluster.broker_url, plan.cluster) as mqtt,
        StreamClient(_HOST, port) as http,
    ):
        prompt = next(iter(zoo.prompts().values()))[0]
        body = {
            "prompt": prompt, "max_tokens": settings.max_tokens, "policy": _ALONE,
            "ignore_eos": True,
        }  # fmt: skip
        for number in range(-2, settings.pairs):  # the first two pairs warm up
            ways = [_over_mqtt(mqtt, body), http.complete(body)]
            first, second = ways if number % 2 else reversed(ways)
            answers = [await first, await second]
            over_mqtt, over_http = answers if number % 2 else reversed(answers)
            if over_mqtt.text != over_http.text:
                raise LabError("the texts over MQTT and HTTP differ")
            if number >= 0:
                runs.append({"mqtt": over_mqtt.record(), "http": over_http.record()})
        loads.append(os.getloadavg()[0])
        notify(f"{settings.pairs} pairs of requests are measured")
        pid = cluster.pid(plan.target.node_id)
        resident_mib = list[float]()
        for _ in range(_ROUNDS):
            await _open_at_once(port, settings.streams, {**body, "max_tokens": _STREAM_TOKENS})
            resident_mib.append(_resident_mib(pid))
    figures = _figures(runs) | {
        "http_streams_at_once": counted(settings.streams, "streams"),
        "http_streams_memory_growth_mib": counted(resident_mib[-1] - resident_mib[0], "MiB"),
    }
    keep(figures, runs, load_before_and_after=loads, resident_mib=resident_mib)
    return figures


def _with_room(streams: int, plan: ClusterPlan) -> ClusterPlan:
    """The plan with a queue that has room for this many streams of one client."""
    options = (*plan.target.options, "--max-queued", str(2 * streams))
    return replace(plan, target=replace(plan.target, options=options))


async def _open_at_once(port: int, num_streams: int, body: dict[str, Any]) -> None:
    async def one() -> str:
        async with StreamClient(_HOST, port) as client:
            return (await client.complete(body)).text

    async with asyncio.TaskGroup() as group:
        streams = [group.create_task(one(), name="stream") for _ in range(num_streams)]
    if len({stream.result() for stream in streams}) != 1:
        raise LabError("the texts of streams that were open at once differ")


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _over_mqtt(client: Client, body: dict[str, Any]) -> StreamTimes:
    request = Request(
        client_id="", request_id=os.urandom(8).hex(), kind="completion", prompt=body["prompt"],
        max_tokens=body["max_tokens"], policy=body["policy"], ignore_eos=body["ignore_eos"],
        stream=True,
    )  # fmt: skip
    text, moments, num_tokens = "", list[float](), 0
    begun = time.perf_counter()
    async with aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, Delta):
                moments.append(time.perf_counter())
                text += step.text
            else:
                num_tokens = step.body["usage"]["completion_tokens"]
    return StreamTimes(moments[0] - begun, moments[-1] - begun, num_tokens, text)


def _figures(runs: list[dict[str, Any]]) -> dict[str, Figure]:
    def times(way: str) -> list[StreamTimes]:
        return [StreamTimes(**run[way], text="") for run in runs]

    both = list(zip(times("http"), times("mqtt"), strict=True))
    first_ms = [1e3 * (http.first_text_s - mqtt.first_text_s) for http, mqtt in both]
    token_ms = [1e3 * (http.token_s - mqtt.token_s) for http, mqtt in both]
    mqtt_ms = [1e3 * mqtt.first_text_s for _, mqtt in both]
    return {
        "http_overhead_first_text_ms": interval(first_ms, unit="ms"),
        "http_overhead_token_ms": interval(token_ms, unit="ms"),
        "mqtt_first_text_ms": counted(statistics.median(mqtt_ms), "ms"),
    }
