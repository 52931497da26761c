"""Several gateways on one real broker, in one process, share requests and statuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from edgecosine.balance.rendezvous_hash import chosen
from edgecosine.errors import ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.cluster_queue import state as queue_state
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.claim_messages import KEEP_CLAIM_S, Claim, read_work
from edgecosine.protocol.api.retained_topics import OFFLINE, ONLINE
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

NAMES = ("a", "b")


@pytest.fixture(autouse=True)
def _chosen_target_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the chosen target must not lose its requests to the other."""
    monkeypatch.setattr(queue_state, "UNCLAIMED_S", 1e6)


@dataclass
class TwoTargets:
    """A broker, two gateways, and a listener on all topics."""

    broker: EmbeddedBroker
    gateways: dict[str, Gateway]
    services: dict[str, ScriptedService]
    tasks: dict[str, asyncio.Task[None]]
    listener: Listener

    def ask(self, request_id: str, **fields: object) -> None:
        body = {"client": "cli", "id": request_id, "prompt": "hm", **fields}
        self.listener.send(HOME.request("completion"), body)

    async def finals(self, request_id: str, count: int = 1) -> list[bytes]:
        topic = HOME.response("cli", request_id)
        return [message.payload for message in await self.listener.expect(topic, count)]

    def served(self, name: str) -> list[str]:
        return [request.request_id for request in self.services[name].requests]

    async def alone(self, name: str) -> None:
        """Wait until a gateway has no active peers."""
        async with asyncio.timeout(PATIENCE_S):
            while self.gateways[name].queue.active_peers:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)


def gateway(broker: EmbeddedBroker, name: str, service: ScriptedService, identity: str) -> Gateway:
    address = BrokerAddress.parse(broker.url)
    return Gateway(service, broker=address, cluster="home", node_id=name, identity=identity)


@contextlib.asynccontextmanager
async def two_targets(gate: asyncio.Event | None = None) -> AsyncIterator[TwoTargets]:
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(port=free_port()))
        services = {name: ScriptedService(max_sessions=8) for name in NAMES}
        if gate is not None:
            for service in services.values():
                service.held["hm"] = gate
        gateways = {name: gateway(broker, name, services[name], "x") for name in NAMES}
        tasks = {}
        for name in NAMES:
            tasks[name] = await stack.enter_async_context(running(gateways[name].run()))
        for name in NAMES:
            await gateways[name].client.connected()
            async with asyncio.timeout(PATIENCE_S):
                while not gateways[name].queue.active_peers:  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
        listener = await stack.enter_async_context(listening(broker))
        yield TwoTargets(broker, gateways, services, tasks, listener)


IDS = [str(number) for number in range(16)]


def share(name: str) -> list[str]:
    """The requests that fall to one of the two."""
    return [each for each in IDS if chosen(f"cli/{each}", NAMES) == name]


def test_two_targets_share_requests_and_answer_repeated_ones() -> None:
    async def scenario() -> None:
        async with two_targets() as here:
            for each in IDS:
                here.ask(each)
            finals = {each: await here.finals(each) for each in IDS}
            assert {name: sorted(here.served(name)) for name in NAMES} == {
                name: sorted(share(name)) for name in NAMES
            }
            for each in IDS:
                here.ask(each)
            for each in IDS:
                assert await here.finals(each, 2) == finals[each] * 2
            assert Counter(here.served("a") + here.served("b")) == Counter(IDS)

    run(scenario())


def test_leaving_target_hands_over_its_requests_and_the_cluster_stays_online() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with two_targets(gate) as here:
            for each in IDS[:8]:
                here.ask(each)
                await here.listener.expect_state(each, "queued")
            here.tasks["a"].cancel()
            await here.alone("b")
            gate.set()
            finals = [await here.finals(each) for each in IDS[:8]]
            assert all("choices" in json.loads(final) for [final] in finals)
            statuses = [m.payload for m in here.listener.received if m.topic == HOME.status]
            assert OFFLINE not in statuses

    run(scenario())


def test_draining_target_leaves_new_requests_to_the_other() -> None:
    async def scenario() -> None:
        async with two_targets() as here:
            async with asyncio.timeout(PATIENCE_S):
                await here.gateways["a"].drain()
            for each in IDS:
                here.ask(each)
            for each in IDS:
                [final] = await here.finals(each)
                assert "choices" in json.loads(final)
            assert here.served("a") == []
            statuses = {m.payload for m in here.listener.received if m.topic == HOME.status}
            assert statuses <= {ONLINE}

    run(scenario())


def test_claims_are_retained_until_their_requests_are_finished() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with two_targets(gate) as here:
            here.ask("1", temperature=0.7)
            await here.listener.expect_state("1", "queued")
            async with listening(here.broker, f"{HOME.root}/work/#", name="late") as late:
                [message] = await late.expect(HOME.work("cli", "1"))
                claim = read_work(message.payload)
                assert isinstance(claim, Claim)
                assert claim.request.prompt == "hm"
                gate.set()
                [final] = await here.finals("1")
                assert json.loads(final)["edgecosine"]["seed"] == claim.request.sampling.seed
                assert message.expiry_s is not None
                assert message.expiry_s <= KEEP_CLAIM_S
                [_, ended, cleared] = await late.expect(HOME.work("cli", "1"), 3)
                claim = read_work(ended.payload)
                assert isinstance(claim, Claim)
                assert claim.end is not None
                assert claim.end.final.body == final
                assert cleared.payload == b""

    run(scenario())


def test_cancel_reaches_the_owner_of_a_request() -> None:
    async def scenario() -> None:
        async with two_targets(asyncio.Event()) as here:
            for each in (share("a")[0], share("b")[0]):
                here.ask(each)
                await here.listener.expect_state(each, "queued")
                here.listener.send(HOME.job_cancel(each), {"client": "cli"})
                [final] = await here.finals(each)
                assert json.loads(final)["error"]["code"] == "cancelled"

    run(scenario())


def test_target_of_another_model_is_refused() -> None:
    async def scenario() -> None:
        async with two_targets() as here:
            other_model = gateway(here.broker, "c", ScriptedService(), "y")
            with pytest.raises(ExceptionGroup) as refusal:
                await other_model.run()
            [error] = _leaves(refusal.value)
            assert isinstance(error, ConfigError)
            assert "serves" in str(error)
            here.ask("1")
            await here.finals("1")

    run(scenario())


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
