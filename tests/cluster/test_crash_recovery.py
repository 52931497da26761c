"""Real processes under SIGKILL: each accepted request ends with the text it would have had."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.protocol.api.topics import Topics
from tests.support.killable import KillableBroker, KillableNode
from tests.support.mqtt import needs_mosquitto, run_patiently
from tests.support.stream_reader import SAMPLED_BODIES, StreamReader, content

pytestmark = [needs_mosquitto, pytest.mark.timeout(120)]

TOPICS = Topics("recovery")


@dataclass
class KillableCluster:
    broker: KillableBroker
    target: KillableNode
    reader: StreamReader


@contextlib.asynccontextmanager
async def killable_cluster(directory: Path) -> AsyncIterator[KillableCluster]:
    """A broker, a target that is online and a reader; all end with the block.

    The target has no drafters and is slow enough to be killed in the middle of an answer.
    """
    broker = KillableBroker(directory)
    target = KillableNode(
        "--role", "target", "--model", zoo.TARGET, "--cluster", TOPICS.cluster,
        "--broker", broker.url, "--ballast", "16", "--no-mdns", "--credentials", "none",
        "--state-dir", str(directory / "state"), "--threads", "1", log=directory / "target.log",
    )  # fmt: skip
    reader = StreamReader(broker.url, TOPICS)
    try:
        async with asyncio.timeout(100):
            await broker.start()
            await target.start()
            await until_online(broker.url)
            async with reader.running():
                yield KillableCluster(broker, target, reader)
    finally:
        await target.kill()
        await broker.kill()


async def until_online(broker_url: str) -> None:
    """Wait for a gateway."""
    async with Client(broker_url, TOPICS.cluster) as client:
        while not await client.is_online():
            await client.changed()


def test_killed_target_resumes_its_requests_with_unchanged_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        prompts = [text for texts in zoo.prompts().values() for text in texts[:2]]
        async with killable_cluster(tmp_path) as cluster:
            reader = cluster.reader
            killed = [f"killed-{number}" for number in range(len(SAMPLED_BODIES))]
            for name, prompt, body in zip(killed, prompts, SAMPLED_BODIES, strict=False):
                reader.send(name, prompt=prompt, **body)
            for _ in range(2):
                await reader.until_longer(killed)
                await cluster.target.kill()
                await cluster.target.start()
            resumed = await reader.final_bodies(*killed)
            whole = [name.replace("killed", "whole") for name in killed]
            for name, prompt, body in zip(whole, prompts, SAMPLED_BODIES, strict=False):
                reader.send(name, prompt=prompt, **body)
            assert [content(body) for body in resumed] == [
                content(body) for body in await reader.final_bodies(*whole)
            ]
            for name, body in zip(killed, resumed, strict=True):
                reader.answers[name].check(body)
            assert reader.num_gaps == 0
            assert cluster.target.log.read_text().count("request resumed") >= 2

    run_patiently(scenario())


def test_request_waits_on_the_broker_for_an_absent_target(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with killable_cluster(tmp_path) as cluster:
            await cluster.target.kill()
            cluster.reader.send("waiting", prompt="To be", max_tokens=8)
            await cluster.reader.until_delivered()
            # Mosquitto acknowledges before it saves; on SIGTERM it saves at once.
            await cluster.broker.stop()
            await cluster.broker.start()
            await cluster.target.start()
            [body] = await cluster.reader.final_bodies("waiting")
            cluster.reader.answers["waiting"].check(body)

    run_patiently(scenario())


def test_killed_broker_loses_no_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with killable_cluster(tmp_path) as cluster:
            reader = cluster.reader
            # Parts are lost while the broker is away; a later one shows the gap, so the answer has
            # to outlast the new start of the broker.
            reader.send(
                "running", prompt="To be", ignore_eos=True, max_tokens=240, policy="target-alone"
            )
            await reader.until_longer(["running"])
            await cluster.broker.kill()
            await cluster.broker.start()
            [body] = await reader.final_bodies("running")
            reader.answers["running"].check(body)
            assert body["usage"]["completion_tokens"] == 240
            assert "resumed" not in cluster.target.log.read_text()

    run_patiently(scenario())
