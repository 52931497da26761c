"""A message that a real Mosquitto refuses for good does not block other messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgecosine.backoff import Backoff
from edgecosine.client.client import Client
from edgecosine.counters import Counters
from edgecosine.errors import RequestError
from edgecosine.mqtt import broker_limits
from edgecosine.mqtt import reconnecting_client as mqtt_client
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import connect
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import FinishedRecord
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import NOTHING_RECOVERED, recover
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import FinalReply
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.topics import Topics
from tests.mqtt.own_mosquitto import own_mosquitto
from tests.support.fakes import ScriptedService
from tests.support.mqtt import HOME, Listener, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

LONG, SHORT = "x" * 30_000, "to be"


class Service(ScriptedService):
    """Gives long answers to long requests."""

    async def answer(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.words = (LONG if request.prompt == "much" else SHORT,)
        async for step in super().answer(request):
            yield step


@contextlib.asynccontextmanager
async def gateway(url: str, directory: Path) -> AsyncIterator[Counters]:
    """A target's gateway with a journal, as it is when it starts again."""
    counters, journal = Counters(), DiskJournal(directory)
    gateway = Gateway(
        Service(), broker=BrokerAddress.parse(url), cluster="home", node_id="t1",
        counters=counters, journal=journal, recovered=recover(journal, "tiny", BootTime.now()),
    )  # fmt: skip
    async with running(gateway.run()):
        await gateway.client.connected()
        yield counters


@contextlib.asynccontextmanager
async def reader(url: str) -> AsyncIterator[Listener]:
    """A subscriber to all topics that does not cause the refusals."""
    listener = Listener(BrokerAddress.parse(url), (f"{HOME.root}/#",), "reader")
    async with running(listener.mqtt_client.run()):
        await listener.mqtt_client.connected()
        yield listener


def ask(listener: Listener, request_id: str, prompt: str, **fields: Any) -> None:
    body = {"client": "cli", "id": request_id, "prompt": prompt, **fields}
    listener.send(HOME.request("completion"), body)


async def final(listener: Listener, request_id: str, count: int = 1) -> Any:
    messages = await listener.expect(HOME.response("cli", request_id), count)
    return json.loads(messages[-1].payload)


def test_answer_too_long_for_the_broker_becomes_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = ("max_packet_size 20000",)
        async with own_mosquitto(tmp_path, *settings) as url, reader(url) as listener:
            async with gateway(url, tmp_path / "state") as counters:
                ask(listener, "1", "much")
                assert (await final(listener, "1"))["error"]["code"] == "answer_too_large"
                ask(listener, "2", "little")
                assert (await final(listener, "2"))["choices"][0]["text"] == SHORT
                assert counters.view()["undeliverable"] == 1
                assert "reconnected" not in counters.view()
            async with gateway(url, tmp_path / "state") as counters:
                ask(listener, "1", "much")
                again = await final(listener, "1", 2)
                assert again["error"]["code"] == "answer_too_large"
                assert "undeliverable" not in counters.view()

    run(scenario())


def hang_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything past our own checks."""
    monkeypatch.setattr(Topics, "check_reply", lambda _, topic: topic)
    monkeypatch.setattr(broker_limits, "can_publish_to", lambda _: True)


def test_topic_for_which_the_broker_disconnects_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with own_mosquitto(tmp_path) as url, reader(url) as listener:
            async with gateway(url, tmp_path / "state") as counters:
                hang_up_on(monkeypatch)
                for number in range(4):
                    ask(listener, f"honest-{number}", "little")
                ask(listener, "bad", "little", reply_to=HOME.root + "/response/cli/" + 215 * "/")
                for number in range(4, 8):
                    ask(listener, f"honest-{number}", "little")
                for number in range(8):
                    assert (await final(listener, f"honest-{number}"))["choices"]
                ask(listener, "later", "little")
                assert (await final(listener, "later"))["choices"]
                # The error in its place goes to the same topic.
                assert counters.view()["undeliverable"] == 2
            journal = DiskJournal(tmp_path / "state")
            past = recover(journal, "tiny", BootTime.now())
            journal.store.close()
            assert past.requests == NOTHING_RECOVERED.requests
            assert all(each.is_delivered for each in past.finals)
            async with gateway(url, tmp_path / "state") as counters:
                ask(listener, "after", "little")
                assert (await final(listener, "after"))["choices"]
                assert counters.view() == {}

    run(scenario())


def test_announcement_for_which_the_broker_disconnects_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        hang_up_on(monkeypatch)
        bad, good = Outgoing("a\uffff", b"", retain=True), Outgoing("good", b"", retain=True)
        monkeypatch.setattr(mqtt_client, "_BACKOFF", Backoff(0.075, 0.15, jitter=2 / 3))
        counters = Counters()
        async with own_mosquitto(tmp_path) as url:
            actor = ReconnectingClient(
                BrokerAddress.parse(url), name="me", receive=lambda _: None,
                announce=lambda: (bad, good), counters=counters,
            )  # fmt: skip
            async with running(actor.run()):
                await actor.connected()
                assert counters.view() == {"undeliverable": 2}

    run(scenario())


@pytest.mark.parametrize("setting", ["retain_available false", "max_qos 0"])
def test_limits_of_the_broker_are_respected(tmp_path: Path, setting: str) -> None:
    async def scenario() -> None:
        async with (
            own_mosquitto(tmp_path, setting) as url,
            gateway(url, tmp_path / "state"),
            reader(url) as listener,
        ):
            ask(listener, "1", "little")
            assert (await final(listener, "1"))["choices"]

    run(scenario())


def test_limits_are_read_from_the_broker(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = ("max_packet_size 20000", "max_inflight_messages 3", "max_qos 1")
        async with own_mosquitto(tmp_path, *settings) as url:
            address = BrokerAddress.parse(url)
            async with connect(address, client_id="me", version="5") as connection:
                assert connection.limits.max_packet_bytes == 20_000
                assert connection.limits.max_qos == 1
                assert connection.limits.max_in_flight == 3
            async with connect(address, client_id="me", version="3.1.1") as connection:
                assert connection.limits.max_packet_bytes > 1 << 20

    run(scenario())


def test_too_long_message_is_given_up_where_the_broker_sends_no_limits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with own_mosquitto(tmp_path, "max_packet_size 20000") as url:
            refused: list[str] = []
            is_given_up = asyncio.Event()
            actor = ReconnectingClient(
                BrokerAddress.parse(url), name="me", receive=lambda _: None,
                refused=lambda message, _: (refused.append(message.topic), is_given_up.set())[0],
            )  # fmt: skip
            actor._version = "3.1.1"
            async with running(actor.run()):
                for name in ("a", "b"):
                    actor.send(Outgoing(name, b""))
                actor.send(Outgoing("long", bytes(30_000)))
                await is_given_up.wait()
                actor.send(Outgoing("c", b""))
                while len(actor._outbox):  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
            assert refused == ["long"]

    run(scenario())


def test_message_that_the_broker_refuses_is_given_up_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "acl").write_text("topic readwrite good\n")
        given_up: list[tuple[str, str]] = []
        delivered: list[str] = []
        async with own_mosquitto(tmp_path, f"acl_file {tmp_path}/acl") as url:
            actor = ReconnectingClient(
                BrokerAddress.parse(url), name="me", receive=lambda _: None,
                delivered=lambda message: delivered.append(message.topic),
                refused=lambda message, reason: given_up.append((message.topic, reason)),
            )  # fmt: skip
            async with running(actor.run()):
                await actor.connected()
                for topic in ("good", "bad", "good"):
                    actor.send(Outgoing(topic, b""))
                while len(actor._outbox):  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
        assert delivered == ["good", "good"]
        [(topic, reason)] = given_up
        assert topic == "bad"
        assert "ot authorized" in reason

    run(scenario())


def test_client_gets_an_error_for_a_request_that_the_broker_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            own_mosquitto(tmp_path, "max_packet_size 20000") as url,
            gateway(url, tmp_path / "state"),
            Client(url, "home") as client,
        ):
            request = Request("", "1", "completion", LONG)
            with pytest.raises(RequestError, match="20000") as refusal:
                async for _ in client.ask(request):
                    pass
            assert refusal.value.code == "broker_refused"

    run(scenario())


def test_undeliverable_final_of_a_former_process_delays_no_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        topic = HOME.root + "/response/cli/\uffff"
        old = FinalReply("old", topic, b"{}")
        journal = DiskJournal(tmp_path / "state")
        async with running(journal.run()):
            journal.finish(FinishedRecord("cli/old", b"", "done", old, journal.wall_s() + 3600))
            await journal.settled()
        async with own_mosquitto(tmp_path) as url, reader(url) as listener:
            async with gateway(url, tmp_path / "state") as counters:
                ask(listener, "1", "little")
                assert (await final(listener, "1"))["choices"]
                assert counters.view()["undeliverable"] == 2
            async with gateway(url, tmp_path / "state") as counters:
                ask(listener, "2", "little")
                assert (await final(listener, "2"))["choices"]
                assert counters.view() == {}

    run(scenario())
