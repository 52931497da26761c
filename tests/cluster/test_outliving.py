"""Real processes under SIGKILL: what was accepted is answered, with the text it would have had."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.local import child_processes as processes
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.topics import ResponseTopic, StreamTopic, Topics
from tests.support.mqtt import free_port, needs_mosquitto, run_patiently

pytestmark = [needs_mosquitto, pytest.mark.timeout(300)]

HOME = Topics("outliving")
BODIES: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3, "stop": ["\n\n\n", "zzz"], "logprobs": 2},
    {"temperature": 1, "seed": 4, "n": 2, "presence_penalty": 0.5, "min_tokens": 40},
    {"temperature": 0.7, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.1, "ignore_eos": True},
)


@dataclass
class Story:
    """What a reader has of one request."""

    texts: dict[int, str] = field(default_factory=dict)
    finals: set[bytes] = field(default_factory=set)
    body: bytes = b""
    num_asked: int = 0

    def add(self, piece: dict[str, Any]) -> bool:
        """False where something is missing before this part."""
        if piece["fin"]:
            return True
        choice, index, delta = piece.get("choice", 0), piece["i"], piece["delta"]
        text = self.texts.get(choice, "")
        if index > len(text):
            return False
        assert text[index : index + len(delta)] == delta[: len(text) - index], "a contradiction"
        self.texts[choice] = text[:index] + delta + text[index + len(delta) :]
        return True


class Reader:
    """Asks, reads everything, and asks again where a part is missing."""

    def __init__(self, url: str) -> None:
        self.stories: dict[str, Story] = {}
        self.num_gaps = 0
        self._num_asked = self._num_delivered = 0
        self._news = asyncio.Event()
        self._courier = ReconnectingClient(
            BrokerAddress.parse(url),
            name="reader",
            receive=self._receive,
            filters=(HOME.response("cli", "+"), HOME.stream("cli", "+")),
            delivered=self._note,
            session_s=600,
        )

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._courier.run())
            await self._courier.connected()
            yield
            task.cancel()

    def ask(self, request_id: str, **fields: Any) -> None:
        body = {"client": "cli", "id": request_id, "stream": True, "max_tokens": 96, **fields}
        self.stories[request_id] = Story(body=json.dumps(body).encode())
        self._send(request_id)

    def _send(self, request_id: str) -> None:
        self._num_asked += 1
        self.stories[request_id].num_asked += 1
        self._courier.send(Outgoing(HOME.request("completion"), self.stories[request_id].body))

    async def until(self, is_so: Any) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    async def delivered(self) -> None:
        """Wait until the broker has all that was asked."""
        await self.until(lambda: self._num_delivered == self._num_asked)

    async def answers(self, *request_ids: str) -> list[Any]:
        """The finals, each of which came with one content."""
        await self.until(lambda: all(self.stories[each].finals for each in request_ids))
        bodies = []
        for each in request_ids:
            [final] = self.stories[each].finals
            bodies.append(json.loads(final))
        return bodies

    def _note(self, _: Outgoing) -> None:
        self._num_delivered += 1
        self._news.set()

    def _receive(self, message: Incoming) -> None:
        match HOME.parse(message.topic):
            case ResponseTopic(_, request_id):
                self.stories[request_id].finals.add(message.payload)
            case StreamTopic(_, request_id):
                if not self.stories[request_id].add(json.loads(message.payload)):
                    self.num_gaps += 1
                    self._send(request_id)
        message.acknowledge()
        self._news.set()


class Mortal:
    """A process that is killed and started again, as a service manager would."""

    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        self._command, self.log = command, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await processes.spawn(self._command, self.log)

    async def stop(self) -> None:
        assert self._process is not None
        await processes.stop(self._process)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def target(url: str, directory: Path) -> Mortal:
    """A target without drafters, slow enough to be killed in the middle."""
    command = (
        sys.executable, "-m", "edgecosine", "node", "--role", "target", "--model", zoo.TARGET,
        "--cluster", HOME.cluster, "--broker", url, "--ballast", "16", "--no-mdns",
        "--credentials", "none", "--state-dir", str(directory / "state"), "--threads", "1",
    )  # fmt: skip
    return Mortal(command, directory / "target.log")


class Broker(Mortal):
    """A Mosquitto that keeps sessions on disk."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        file = directory / "mosquitto.conf"
        file.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
            f"persistence_location {directory}/\nautosave_interval 1\nautosave_on_changes true\n"
        )
        super().__init__(("/usr/sbin/mosquitto", "-c", str(file)), directory / "mosquitto.log")

    async def start(self) -> None:
        await super().start()
        while not await self._accepts():  # noqa: ASYNC110 -- there is no event for that
            await asyncio.sleep(0.02)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


@dataclass
class Place:
    broker: Broker
    target: Mortal
    reader: Reader


@contextlib.asynccontextmanager
async def place(directory: Path) -> AsyncIterator[Place]:
    """A broker, a target that is online and a reader, all gone afterwards."""
    broker = Broker(directory)
    here = Place(broker, target(broker.url, directory), Reader(broker.url))
    try:
        async with asyncio.timeout(200):
            await here.broker.start()
            await here.target.start()
            await online(broker.url)
            async with here.reader.reading():
                yield here
    finally:
        await here.target.kill()
        await here.broker.kill()


async def online(url: str) -> None:
    """Wait for a gateway."""
    async with Client(url, HOME.cluster) as client:
        while not await client.is_online():
            await client.changed()


def told(body: Any) -> Any:
    """What must be the same in any weather."""
    return body["choices"], body["usage"]


def check_story(story: Story, body: Any) -> None:
    """The stream has what the final has, in each choice."""
    texts = [choice["text"] for choice in body["choices"]]
    assert [story.texts.get(number, "") for number in range(len(texts))] == texts


def _length(reader: Reader, name: str) -> int:
    return sum(map(len, reader.stories[name].texts.values()))


async def more_text(reader: Reader, names: list[str], num_chars: int = 20) -> None:
    """Wait until one of the requests has so much more text, or all have ended."""
    lengths = {name: _length(reader, name) for name in names}
    await reader.until(
        lambda: (
            any(_length(reader, name) > lengths[name] + num_chars for name in names)
            or all(reader.stories[name].finals for name in names)
        )
    )


def test_killed_target_goes_on_where_it_was(tmp_path: Path) -> None:
    async def story() -> None:
        prompts = [each[0] for each in zoo.prompts().values()]
        async with place(tmp_path) as here:
            reader = here.reader
            killed = [f"killed-{number}" for number in range(len(BODIES))]
            for name, prompt, body in zip(killed, prompts, BODIES, strict=False):
                reader.ask(name, prompt=prompt, **body)
            for _ in range(2):
                await more_text(reader, killed)
                await here.target.kill()
                await here.target.start()
            ends = await reader.answers(*killed)
            whole = [name.replace("killed", "whole") for name in killed]
            for name, prompt, body in zip(whole, prompts, BODIES, strict=False):
                reader.ask(name, prompt=prompt, **body)
            assert [told(body) for body in ends] == [
                told(body) for body in await reader.answers(*whole)
            ]
            for name, body in zip(killed, ends, strict=True):
                check_story(reader.stories[name], body)
            assert reader.num_gaps == 0
            assert here.target.log.read_text().count("request resumed") >= 2

    run_patiently(story())


def test_requests_wait_for_a_target_that_is_away(tmp_path: Path) -> None:
    async def story() -> None:
        async with place(tmp_path) as here:
            await here.target.kill()
            here.reader.ask("away", prompt="To be", max_tokens=8)
            await here.reader.delivered()
            # Mosquitto acknowledges before it saves; only when it is asked to end it saves at once.
            await here.broker.stop()
            await here.broker.start()
            await here.target.start()
            [body] = await here.reader.answers("away")
            check_story(here.reader.stories["away"], body)

    run_patiently(story())


def test_killed_broker_costs_no_request(tmp_path: Path) -> None:
    async def story() -> None:
        async with place(tmp_path) as here:
            here.reader.ask("broken", prompt="To be", ignore_eos=True)
            await more_text(here.reader, ["broken"])
            await here.broker.kill()
            await here.broker.start()
            [body] = await here.reader.answers("broken")
            check_story(here.reader.stories["broken"], body)
            assert body["usage"]["completion_tokens"] == 96
            assert "resumed" not in here.target.log.read_text()

    run_patiently(story())
