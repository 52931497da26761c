"""Two real targets on one queue: when one is killed or stopped the other answers, once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.topics import ResponseTopic
from tests.cluster.test_outliving import (
    BODIES,
    HOME,
    Broker,
    Mortal,
    Reader,
    check_story,
    more_text,
    told,
)
from tests.support.mqtt import free_port, needs_mosquitto, run_patiently

pytestmark = [needs_mosquitto, pytest.mark.timeout(180)]

NAMES = ("t1", "t2")


class CountingReader(Reader):
    """Counts final messages, not contents alone."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.num_finals: Counter[str] = Counter()

    def _receive(self, message: Incoming) -> None:
        match HOME.parse(message.topic):
            case ResponseTopic(_, request_id):
                self.num_finals[request_id] += 1
        super()._receive(message)


def node(url: str, directory: Path, name: str, *options: str) -> Mortal:
    command = (
        sys.executable, "-m", "edgecosine", "node", "--node-id", name, "--cluster", HOME.cluster,
        "--broker", url, "--no-mdns", "--credentials", "none", *options,
    )  # fmt: skip
    return Mortal(command, directory / f"{name}.log")


@dataclass
class Pair:
    broker: Broker
    targets: dict[str, Mortal]
    reader: CountingReader
    client: Client

    async def until_ready(self, *names: str) -> None:
        """Wait until targets take requests, and have the drafter."""
        while True:
            views = await self.client.nodes()
            if all(
                name in views
                and (status := views[name].status) is not None
                and status.state == "ready"
                and views[name].state.get("drafters")
                and set(names) <= {name, *views[name].state.get("beside", ())}
                for name in names
            ):
                return
            await self.client.changed()

    def log(self, name: str) -> str:
        return self.targets[name].log.read_text()

    def answered(self, name: str, request_id: str) -> int:
        return self.log(name).count(f"answered: request=cli/{request_id} ")


@contextlib.asynccontextmanager
async def pair(directory: Path, *options: str) -> AsyncIterator[Pair]:
    """A broker, two targets and a drafter that serves both, all gone afterwards."""
    broker, port = Broker(directory), free_port()
    drafter = node(
        broker.url, directory, "d", "--role", "drafter", "--model", "ngram",
        "--listen", f"127.0.0.1:{port}",
    )  # fmt: skip
    targets = {
        name: node(
            broker.url, directory, name, "--role", "target", "--model", zoo.TARGET, "--ballast",
            "8", "--threads", "1", "--state-dir", str(directory / name), "--peer",
            f"127.0.0.1:{port}", *options,
        )
        for name in NAMES
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(150):
        for process in (broker, drafter, *targets.values()):
            stack.push_async_callback(process.kill)
            await process.start()
        reader = CountingReader(broker.url)
        client = await stack.enter_async_context(Client(broker.url, HOME.cluster))
        here = Pair(broker, targets, reader, client)
        await here.until_ready(*NAMES)
        async with reader.reading():
            yield here


def ask_all(reader: Reader, prefix: str, num_tokens: int = 56) -> list[str]:
    """Eight requests of all kinds, streamed."""
    prompts = [each[0] for each in zoo.prompts().values()]
    names = [f"{prefix}-{number}" for number in range(2 * len(BODIES))]
    for number, name in enumerate(names):
        body = {**BODIES[number % len(BODIES)], "max_tokens": num_tokens}
        reader.ask(name, prompt=prompts[number % len(prompts)], **body)
    return names


def check(reader: CountingReader, names: list[str], bodies: list[Any]) -> None:
    """One answer each, and streams that say the same.

    It is sent once, once more to who asks again, and once more by a target that is back and does
    not know whether the broker had it.
    """
    for name, body in zip(names, bodies, strict=True):
        story = reader.stories[name]
        assert len(story.finals) == 1
        assert 1 <= reader.num_finals[name] <= story.num_asked + 1
        check_story(story, body)


def test_killed_target_is_stood_in_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with pair(tmp_path) as here:
            reader = here.reader
            whole = ask_all(reader, "whole")
            expected = await reader.answers(*whole)
            assert all(sum(here.answered(name, each) for each in whole) for name in NAMES)
            killed = ask_all(reader, "killed")
            await more_text(reader, killed)
            await here.targets["t1"].kill()
            ends = await reader.answers(*killed)
            assert [told(body) for body in ends] == [told(body) for body in expected]
            assert "request taken over" in here.log("t2")
            await here.targets["t1"].start()
            await here.until_ready(*NAMES)
            again = ask_all(reader, "again", 8)
            await reader.answers(*again)
            for name in killed:
                reader._send(name)
            await reader.until(lambda: all(reader.num_finals[name] >= 2 for name in killed))
            check(reader, killed, ends)
            logs = [here.log(name) for name in NAMES]
            assert all("answered: request=cli/again" in log for log in logs)
            for name in killed:
                assert sum(here.answered(target, name) for target in NAMES) == 1

    run_patiently(story())


def test_stopped_target_keeps_silent_when_it_wakes(tmp_path: Path) -> None:
    async def story() -> None:
        async with pair(tmp_path, "--broker-keepalive", "2") as here:
            reader = here.reader
            frozen = ask_all(reader, "frozen")
            await more_text(reader, frozen)
            process = here.targets["t1"]._process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            # One that would not say the same is refused by the name of who is there.
            stranger = node(
                here.broker.url, tmp_path, "t3", "--role", "target", "--model", zoo.TARGET,
                "--state-dir", str(tmp_path / "t3"),
            )  # fmt: skip
            await stranger.start()
            ends = await reader.answers(*frozen)
            assert "request taken over" in here.log("t2")
            assert await stranger._process.wait()  # type: ignore[union-attr]
            assert re.search(r"t[12] serves", stranger.log.read_text())
            process.send_signal(signal.SIGCONT)
            await here.until_ready(*NAMES)
            whole = ask_all(reader, "whole")
            expected = await reader.answers(*whole)
            assert [told(body) for body in ends] == [told(body) for body in expected]
            check(reader, frozen, ends)
            assert "request given up" in here.log("t1")

    run_patiently(story())
