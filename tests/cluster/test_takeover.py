"""Two real targets on one queue: when one is killed or stopped, the other answers, once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.protocol.api.topics import Topics
from tests.support.killable import KillableBroker, KillableNode
from tests.support.mqtt import free_port, needs_mosquitto, run_patiently
from tests.support.stream_reader import SAMPLED_BODIES, StreamReader, content

pytestmark = [needs_mosquitto, pytest.mark.timeout(120)]

TOPICS = Topics("takeover")
TARGETS = ("t1", "t2")


def node(broker_url: str, directory: Path, name: str, *options: str) -> KillableNode:
    return KillableNode(
        "--node-id", name, "--cluster", TOPICS.cluster, "--broker", broker_url, "--no-mdns",
        "--credentials", "none", *options, log=directory / f"{name}.log",
    )  # fmt: skip


@dataclass
class TwoTargets:
    broker: KillableBroker
    targets: dict[str, KillableNode]
    reader: StreamReader
    client: Client

    async def until_ready(self) -> None:
        """Wait until both targets accept requests, see each other and are linked to the drafter."""
        while True:
            views = await self.client.nodes()
            if all(
                name in views
                and (status := views[name].status) is not None
                and status.state == "ready"
                and views[name].state.get("drafters")
                and set(TARGETS) <= {name, *views[name].state.get("beside", ())}
                for name in TARGETS
            ):
                return
            await self.client.changed()

    def log(self, target: str) -> str:
        return self.targets[target].log.read_text()

    def num_answered(self, target: str, request_id: str) -> int:
        return self.log(target).count(f"answered: request=cli/{request_id} ")


@contextlib.asynccontextmanager
async def two_targets(directory: Path, *options: str) -> AsyncIterator[TwoTargets]:
    """A broker, two targets and a drafter that serves both; all end with the block."""
    broker, port = KillableBroker(directory), free_port()
    drafter = node(
        broker.url, directory, "d", "--role", "drafter", "--model", "ngram",
        "--listen", f"127.0.0.1:{port}",
    )  # fmt: skip
    targets = {
        name: node(
            broker.url, directory, name, "--role", "target", "--model", zoo.TARGET, "--ballast",
            "4", "--threads", "1", "--state-dir", str(directory / name), "--peer",
            f"127.0.0.1:{port}", *options,
        )
        for name in TARGETS
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(100):
        for process in (broker, drafter, *targets.values()):
            stack.push_async_callback(process.kill)
            await process.start()
        reader = StreamReader(broker.url, TOPICS)
        client = await stack.enter_async_context(Client(broker.url, TOPICS.cluster))
        cluster = TwoTargets(broker, targets, reader, client)
        await cluster.until_ready()
        async with reader.running():
            yield cluster


def send_eight(reader: StreamReader, prefix: str, num_tokens: int = 40) -> list[str]:
    """Send eight streamed requests that use every kind of sampling."""
    prompts = [each[0] for each in zoo.prompts().values()]
    names = [f"{prefix}-{number}" for number in range(2 * len(SAMPLED_BODIES))]
    for number, name in enumerate(names):
        body = {**SAMPLED_BODIES[number % len(SAMPLED_BODIES)], "max_tokens": num_tokens}
        reader.send(name, prompt=prompts[number % len(prompts)], **body)
    return names


def check_answers(reader: StreamReader, names: list[str], bodies: list[Any]) -> None:
    """Each request has one answer, and its stream the same text.

    The answer is sent once, once more for each repeated request, and once more by a restarted
    target that does not know whether the broker received it.
    """
    for name, body in zip(names, bodies, strict=True):
        answer = reader.answers[name]
        assert len(answer.finals) == 1
        assert 1 <= answer.finals.total() <= answer.num_sent + 1
        answer.check(body)


def test_other_target_takes_over_the_requests_of_a_killed_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_targets(tmp_path) as cluster:
            reader = cluster.reader
            whole = send_eight(reader, "whole")
            expected = await reader.final_bodies(*whole)
            assert all(sum(cluster.num_answered(name, each) for each in whole) for name in TARGETS)
            killed = send_eight(reader, "killed")
            await reader.until_longer(killed)
            await cluster.targets["t1"].kill()
            bodies = await reader.final_bodies(*killed)
            assert [content(body) for body in bodies] == [content(body) for body in expected]
            assert "request taken over" in cluster.log("t2")
            await cluster.targets["t1"].start()
            await cluster.until_ready()
            again = send_eight(reader, "again", 8)
            await reader.final_bodies(*again)
            for name in killed:
                reader.send_again(name)
            await reader.until(
                lambda: all(reader.answers[name].finals.total() >= 2 for name in killed)
            )
            check_answers(reader, killed, bodies)
            assert all("answered: request=cli/again" in cluster.log(name) for name in TARGETS)
            for name in killed:
                assert sum(cluster.num_answered(target, name) for target in TARGETS) == 1

    run_patiently(scenario())


def test_stopped_target_gives_up_its_requests_when_it_continues(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_targets(tmp_path, "--broker-keepalive", "2") as cluster:
            reader = cluster.reader
            stopped = send_eight(reader, "stopped")
            await reader.until_longer(stopped)
            process = cluster.targets["t1"].process
            process.send_signal(signal.SIGSTOP)
            # A target whose texts would differ is refused, and the error names a present target.
            other = node(
                cluster.broker.url, tmp_path, "t3", "--role", "target", "--model", zoo.TARGET,
                "--state-dir", str(tmp_path / "t3"),
            )  # fmt: skip
            await other.start()
            bodies = await reader.final_bodies(*stopped)
            assert "request taken over" in cluster.log("t2")
            assert await other.process.wait()
            assert re.search(r"t[12] serves", other.log.read_text())
            process.send_signal(signal.SIGCONT)
            await cluster.until_ready()
            whole = send_eight(reader, "whole")
            expected = await reader.final_bodies(*whole)
            assert [content(body) for body in bodies] == [content(body) for body in expected]
            check_answers(reader, stopped, bodies)
            assert "request given up" in cluster.log("t1")

    run_patiently(scenario())
