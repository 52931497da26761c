"""Targets that died unseen: the broker holds their last words, and nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgecosine.balance.rendezvous_hash import chosen
from edgecosine.errors import ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.cluster_queue import leases
from edgecosine.node.cluster_queue import members as standings
from edgecosine.node.cluster_queue import state as workbook
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.claim_messages import (
    Claim,
    MembershipStatus,
    StandingState,
    claim_notice,
    standing_notice,
)
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.request_record import ReplyAddress
from tests.cluster.test_outliving import Broker, Mortal
from tests.mqtt.own_mosquitto import own_mosquitto
from tests.node.cluster_queue.test_coordinator import gateway
from tests.support.fakes import ScriptedService
from tests.support.mqtt import (
    HOME,
    PATIENCE_S,
    Listener,
    free_port,
    listening,
    needs_mosquitto,
    run,
    running,
)

pytestmark = needs_mosquitto

IDS = [f"r{number}" for number in range(8)]
GHOSTS = [each for each in IDS if chosen(f"cli/{each}", ("a", "ghost")) == "ghost"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "GRACE_S", 0.5)
    # Whoever waits for a ghost to claim something waits too long.
    monkeypatch.setattr(workbook, "UNCLAIMED_S", 1e6)


def ghost(identity: str = "x", state: StandingState = "ready") -> Outgoing:
    """What a target leaves that never said that it goes."""
    standing = MembershipStatus("ghost", "session", identity, "tiny", 0.0, state)
    return standing_notice(HOME, standing)


@contextlib.asynccontextmanager
async def haunted(*words: Outgoing) -> AsyncIterator[tuple[EmbeddedBroker, Listener]]:
    """A broker that holds these words."""
    async with EmbeddedBroker(port=free_port()) as broker, listening(broker) as listener:
        for word in words:
            listener.courier.send(word)
            await listener.expect(word.topic)
        yield broker, listener


def ask(listener: Listener, request_id: str, prompt: str = "or not") -> None:
    body = {"client": "cli", "id": request_id, "prompt": prompt}
    listener.send(HOME.request("completion"), body)


async def final(listener: Listener, request_id: str) -> Any:
    return await listener.expect_json(HOME.response("cli", request_id))


@pytest.mark.parametrize("identity", ["x", "another model"])
def test_target_serves_beside_a_ghost_and_leaves_it_nothing(identity: str) -> None:
    async def story() -> None:
        async with haunted(ghost(identity)) as (broker, listener):
            door = gateway(broker, "a", ScriptedService(), "x")
            async with running(door.run()):
                await door.client.connected()
                for each in IDS:
                    ask(listener, each)
                for each in IDS:
                    assert (await final(listener, each))["choices"]
                assert door.queue.active_peers == []

    run(story())


def test_target_of_another_model_is_refused_while_the_first_one_lives() -> None:
    async def story() -> None:
        async with haunted(ghost("z")) as (broker, listener):
            first = gateway(broker, "b", ScriptedService(), "x")
            # Clocks may differ: who was there first is not told by them.
            first.queue.state.members.us = MembershipStatus("b", "s", "x", "tiny", 1e12, "ready")
            async with running(first.run()):
                await first.client.connected()
                with pytest.raises(ExceptionGroup) as refusal:
                    await gateway(broker, "a", ScriptedService(), "y").run()
                assert refusal.value.subgroup(ConfigError)
                ask(listener, "1")
                assert (await final(listener, "1"))["choices"]

    run(story())


def test_work_of_a_ghost_is_taken_over() -> None:
    async def story() -> None:
        ticket = ReplyAddress("cli", "1", "completion", HOME.response("cli", "1"))
        request = Request("cli", "1", "completion", "or not", sampling=Sampling(seed=7))
        claim = Claim("ghost", "session", ticket, request, 0.0)
        async with (
            haunted(ghost(), claim_notice(HOME, claim)) as (broker, listener),
            running(gateway(broker, "a", ScriptedService(), "x").run()),
        ):
            assert (await final(listener, "1"))["edgecosine"]["seed"] == 7

    run(story())


DYING = """
import sys, uvloop
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.gateway.gateway import Gateway
from tests.support.fakes import ScriptedService
service = ScriptedService(max_sessions=8)
service.hold("hm")
address = BrokerAddress.parse(sys.argv[1])
uvloop.run(Gateway(service, broker=address, cluster="home", node_id="ghost", identity="x").run())
"""


def test_work_of_a_target_that_died_together_with_its_broker_is_taken_over(tmp_path: Path) -> None:
    async def story() -> None:
        broker, service = Broker(tmp_path), ScriptedService(max_sessions=8)
        gate = service.hold("hm")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(broker.kill)
            await broker.start()
            dying = Mortal((sys.executable, "-c", DYING, broker.url), tmp_path / "log")
            stack.push_async_callback(dying.kill)
            await dying.start()
            door = Gateway(
                service, broker=BrokerAddress.parse(broker.url), cluster="home", node_id="a",
                identity="x",
            )  # fmt: skip
            await stack.enter_async_context(running(door.run()))
            listener = await stack.enter_async_context(listening(broker))  # type: ignore[arg-type]
            async with asyncio.timeout(PATIENCE_S):
                await door.client.connected()
                while not door.queue.active_peers:  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
            for each in IDS:
                ask(listener, each, "hm")
            for each in IDS:
                await listener.expect_state(each, "running")
            assert len(service.requests) == len(IDS) - len(GHOSTS)
            await dying.kill()
            await broker.kill()
            await broker.start()
            gate.set()
            for each in IDS:
                assert (await final(listener, each))["choices"]
            assert len(service.requests) == len(IDS)

    run(story())


def test_target_that_falls_silent_without_a_will_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_S", 1.5)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)

    async def story() -> None:
        async with haunted() as (broker, listener):
            door = gateway(broker, "a", ScriptedService(), "x")
            async with running(door.run()):
                await door.client.connected()
                listener.courier.send(ghost())
                async with asyncio.timeout(PATIENCE_S):
                    while not door.queue.active_peers:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)
                    for each in IDS:
                        ask(listener, each)
                    for each in IDS:
                        assert (await final(listener, each))["choices"]
                    while door.queue.state.members.others:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)

    run(story())


def test_target_that_must_stop_beside_a_ghost_leaves_it_nothing() -> None:
    async def story() -> None:
        service = ScriptedService()
        gate = service.hold("hm")
        async with haunted(ghost()) as (broker, listener):
            door = gateway(broker, "a", service, "x")
            async with running(door.run()) as task:
                await door.client.connected()
                for each in IDS[:4]:
                    ask(listener, each, "hm")
                for each in IDS[:4]:
                    await listener.expect_state(each, "running")
                task.cancel()
                for each in IDS[:4]:
                    error = (await final(listener, each))["error"]
                    assert error["code"] == "shutting_down"
            [*_, last] = [m.payload for m in listener.received if m.topic == HOME.status]
            assert last == b"offline"
            assert not gate.is_set()

    run(story())


def test_ghost_that_was_forgotten_is_not_known_any_more() -> None:
    async def story() -> None:
        async with haunted(ghost()) as (broker, listener):
            door = gateway(broker, "a", ScriptedService(), "x")
            async with running(door.run()):
                await door.client.connected()
                assert not door.queue.state.members.is_alone
                listener.courier.send(Outgoing(HOME.standing("ghost"), b"", retain=True))
                async with asyncio.timeout(PATIENCE_S):
                    while not door.queue.state.members.is_alone:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)

    run(story())


def test_claim_that_is_too_long_for_the_broker_is_told_shortly(tmp_path: Path) -> None:
    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            url = await stack.enter_async_context(own_mosquitto(tmp_path, "max_packet_size 2000"))
            doors, services = [], [ScriptedService(max_sessions=8) for _ in range(2)]
            for name, service in zip("ab", services, strict=True):
                door = Gateway(
                    service, broker=BrokerAddress.parse(url), cluster="home", node_id=name,
                    identity="x",
                )  # fmt: skip
                await stack.enter_async_context(running(door.run()))
                doors.append(door)
            listener = Listener(BrokerAddress.parse(url), (f"{HOME.root}/#",), "listener")
            await stack.enter_async_context(running(listener.courier.run()))
            async with asyncio.timeout(PATIENCE_S):
                for door in doors:
                    await door.client.connected()
                    while not door.queue.active_peers:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)
                await listener.courier.connected()
            for each in IDS[:4]:
                ask(listener, each, 1800 * "x")
            for each in IDS[:4]:
                assert (await final(listener, each))["choices"]
            assert sum(len(service.requests) for service in services) == 4
            assert all(door.queue.state._unclaimed._kept == {} for door in doors)

    run(story())
