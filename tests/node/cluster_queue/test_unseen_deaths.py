"""Targets that died without a last will: their retained statuses delay nothing."""

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
from edgecosine.node.cluster_queue import members as statuses
from edgecosine.node.cluster_queue import state as queue_state
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.claim_messages import (
    Claim,
    MembershipState,
    MembershipStatus,
    claim_notice,
    membership_notice,
)
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.request_record import RequestTicket
from tests.mqtt.own_mosquitto import own_mosquitto
from tests.node.cluster_queue.test_coordinator import gateway
from tests.support.fakes import ScriptedService
from tests.support.killable import KillableBroker, KillableProcess
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
OF_DEAD = [each for each in IDS if chosen(f"cli/{each}", ("a", "ghost")) == "ghost"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "GRACE_S", 0.5)
    # A request must not wait for a dead target to claim it.
    monkeypatch.setattr(queue_state, "UNCLAIMED_S", 1e6)


def retained_status(identity: str = "x", state: MembershipState = "ready") -> Outgoing:
    """The status that a target without a last will leaves."""
    status = MembershipStatus("ghost", "session", identity, "tiny", 0.0, state)
    return membership_notice(HOME, status)


@contextlib.asynccontextmanager
async def broker_with(*messages: Outgoing) -> AsyncIterator[tuple[EmbeddedBroker, Listener]]:
    """A broker that retains these messages."""
    async with EmbeddedBroker(port=free_port()) as broker, listening(broker) as listener:
        for message in messages:
            listener.mqtt_client.send(message)
            await listener.expect(message.topic)
        yield broker, listener


def ask(listener: Listener, request_id: str, prompt: str = "or not") -> None:
    body = {"client": "cli", "id": request_id, "prompt": prompt}
    listener.send(HOME.request("completion"), body)


async def final(listener: Listener, request_id: str) -> Any:
    return await listener.expect_json(HOME.response("cli", request_id))


@pytest.mark.parametrize("identity", ["x", "another model"])
def test_target_serves_beside_a_retained_status_without_waiting_for_it(identity: str) -> None:
    async def scenario() -> None:
        async with broker_with(retained_status(identity)) as (broker, listener):
            target = gateway(broker, "a", ScriptedService(), "x")
            async with running(target.run()):
                await target.client.connected()
                for each in IDS:
                    ask(listener, each)
                for each in IDS:
                    assert (await final(listener, each))["choices"]
                assert target.queue.active_peers == []

    run(scenario())


def test_later_target_of_another_model_is_refused() -> None:
    async def scenario() -> None:
        async with broker_with(retained_status("z")) as (broker, listener):
            first = gateway(broker, "b", ScriptedService(), "x")
            # Clocks may differ, so they do not decide which target came first.
            first.queue.state.members.us = MembershipStatus("b", "s", "x", "tiny", 1e12, "ready")
            async with running(first.run()):
                await first.client.connected()
                with pytest.raises(ExceptionGroup) as refusal:
                    await gateway(broker, "a", ScriptedService(), "y").run()
                assert refusal.value.subgroup(ConfigError)
                ask(listener, "1")
                assert (await final(listener, "1"))["choices"]

    run(scenario())


def test_requests_of_a_dead_target_are_taken_over() -> None:
    async def scenario() -> None:
        ticket = RequestTicket("cli", "1", "completion", HOME.response("cli", "1"))
        request = Request("cli", "1", "completion", "or not", sampling=Sampling(seed=7))
        claim = Claim("ghost", "session", ticket, request, 0.0)
        async with (
            broker_with(retained_status(), claim_notice(HOME, claim)) as (broker, listener),
            running(gateway(broker, "a", ScriptedService(), "x").run()),
        ):
            assert (await final(listener, "1"))["edgecosine"]["seed"] == 7

    run(scenario())


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


def test_requests_of_a_target_that_died_with_its_broker_are_taken_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker, service = KillableBroker(tmp_path), ScriptedService(max_sessions=8)
        gate = service.hold("hm")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(broker.kill)
            await broker.start()
            dying = KillableProcess((sys.executable, "-c", DYING, broker.url), tmp_path / "log")
            stack.push_async_callback(dying.kill)
            await dying.start()
            target = Gateway(
                service, broker=BrokerAddress.parse(broker.url), cluster="home", node_id="a",
                identity="x",
            )  # fmt: skip
            await stack.enter_async_context(running(target.run()))
            listener = await stack.enter_async_context(listening(broker))  # type: ignore[arg-type]
            async with asyncio.timeout(PATIENCE_S):
                await target.client.connected()
                while not target.queue.active_peers:  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
            for each in IDS:
                ask(listener, each, "hm")
            for each in IDS:
                await listener.expect_state(each, "running")
            assert len(service.requests) == len(IDS) - len(OF_DEAD)
            await dying.kill()
            await broker.kill()
            await broker.start()
            gate.set()
            for each in IDS:
                assert (await final(listener, each))["choices"]
            assert len(service.requests) == len(IDS)

    run(scenario())


def test_silent_target_without_a_will_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_S", 1.5)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)

    async def scenario() -> None:
        async with broker_with() as (broker, listener):
            target = gateway(broker, "a", ScriptedService(), "x")
            async with running(target.run()):
                await target.client.connected()
                listener.mqtt_client.send(retained_status())
                async with asyncio.timeout(PATIENCE_S):
                    while not target.queue.active_peers:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)
                    for each in IDS:
                        ask(listener, each)
                    for each in IDS:
                        assert (await final(listener, each))["choices"]
                    while target.queue.state.members.others:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)

    run(scenario())


def test_target_that_stops_beside_a_dead_one_fails_its_requests() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        gate = service.hold("hm")
        async with broker_with(retained_status()) as (broker, listener):
            target = gateway(broker, "a", service, "x")
            async with running(target.run()) as task:
                await target.client.connected()
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

    run(scenario())


def test_cleared_status_is_forgotten() -> None:
    async def scenario() -> None:
        async with broker_with(retained_status()) as (broker, listener):
            target = gateway(broker, "a", ScriptedService(), "x")
            async with running(target.run()):
                await target.client.connected()
                assert not target.queue.state.members.is_alone
                listener.mqtt_client.send(Outgoing(HOME.membership("ghost"), b"", retain=True))
                async with asyncio.timeout(PATIENCE_S):
                    while not target.queue.state.members.is_alone:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)

    run(scenario())


def test_claim_too_long_for_the_broker_is_announced_without_its_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            url = await stack.enter_async_context(own_mosquitto(tmp_path, "max_packet_size 2000"))
            targets, services = [], [ScriptedService(max_sessions=8) for _ in range(2)]
            for name, service in zip("ab", services, strict=True):
                target = Gateway(
                    service, broker=BrokerAddress.parse(url), cluster="home", node_id=name,
                    identity="x",
                )  # fmt: skip
                await stack.enter_async_context(running(target.run()))
                targets.append(target)
            listener = Listener(BrokerAddress.parse(url), (f"{HOME.root}/#",), "listener")
            await stack.enter_async_context(running(listener.mqtt_client.run()))
            async with asyncio.timeout(PATIENCE_S):
                for target in targets:
                    await target.client.connected()
                    while not target.queue.active_peers:  # noqa: ASYNC110 -- no event
                        await asyncio.sleep(0.01)
                await listener.mqtt_client.connected()
            for each in IDS[:4]:
                ask(listener, each, 1800 * "x")
            for each in IDS[:4]:
                assert (await final(listener, each))["choices"]
            assert sum(len(service.requests) for service in services) == 4
            assert all(target.queue.state._unclaimed._kept == {} for target in targets)

    run(scenario())
