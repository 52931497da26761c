"""A dead node can be forgotten, and a live one cannot."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from edgecosine.client import forget as forgetting
from edgecosine.client.client import Client
from edgecosine.client.forget import forget
from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.protocol.api.claim_messages import MembershipStatus, membership_notice
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.retained_topics import KEEP_S, LEASE_S, NodePresence, NodeStatus
from tests.mqtt.own_mosquitto import own_mosquitto
from tests.support.mqtt import (
    HOME,
    Listener,
    free_port,
    listening,
    needs_mosquitto,
    run,
    running,
)

pytestmark = needs_mosquitto


@contextlib.asynccontextmanager
async def held(
    state: NodePresence, expiry_s: int | None = None
) -> AsyncIterator[tuple[BrokerAddress, Listener]]:
    """A broker that holds a node's status, state and membership status."""
    async with EmbeddedBroker(port=free_port()) as broker, listening(broker) as listener:
        status = msgspec.json.encode(NodeStatus(state, "s", 1.0))
        for message in (
            Outgoing(HOME.node_status("d1"), status, retain=True, expiry_s=expiry_s),
            Outgoing(HOME.node_state("d1"), b'{"role": "target"}', retain=True),
            membership_notice(HOME, MembershipStatus("d1", "s", "x", "m", 0.0, "ready")),
        ):
            listener.mqtt_client.send(message)
            await listener.expect(message.topic)
        yield BrokerAddress.parse(broker.url), listener


@pytest.mark.parametrize(
    ("state", "expiry_s"), [("lost", None), ("offline", None), ("ready", KEEP_S - LEASE_S - 1)]
)
def test_node_that_is_gone_is_forgotten(
    state: NodePresence, expiry_s: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It need not be watched.
    monkeypatch.setattr(forgetting, "_is_alive", None)

    async def scenario() -> None:
        async with held(state, None if expiry_s is None else int(expiry_s)) as (address, listener):
            await forget(address, "home", "d1")
            async with Client(address, "home") as client:
                assert await client.nodes() == {}
            assert (await listener.expect(HOME.node_status("d1"), 2))[-1].payload == b""

    run(scenario())


def test_dead_node_is_observed_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "LEASE_S", 0.5)

    async def scenario() -> None:
        async with held("ready") as (address, _):
            await forget(address, "home", "d1")
            async with Client(address, "home") as client:
                assert await client.nodes() == {}

    run(scenario())


def test_live_and_unknown_nodes_are_not_forgotten() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            presence = NodeStatusPublisher(broker=address, cluster="home", node_id="d1")
            async with running(presence.run()):
                await presence.connected()
                with pytest.raises(ConfigError, match="alive"):
                    await forget(address, "home", "d1")
                with pytest.raises(ConfigError, match="retained messages"):
                    await forget(address, "home", "d2")
                async with Client(address, "home") as client:
                    assert list(await client.nodes()) == ["d1"]

    run(scenario())


def test_broker_that_refuses_the_deletion_is_reported(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "_ANSWER_S", 0.5)
    folder = tmp_path_factory.mktemp("rules")
    (folder / "acl").write_text(f"topic read {HOME.root}/#\n")

    async def scenario() -> None:
        async with own_mosquitto(folder, f"acl_file {folder}/acl") as url:
            with pytest.raises(BrokerLost, match="credentials of a target"):
                await forget(BrokerAddress.parse(url), "home", "d1")

    run(scenario())
