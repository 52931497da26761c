"""A node's status on MQTT: starting, ready, offline, or lost by its will."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from edgecosine.client.client import Client
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt import node_status as module
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.protocol.api.retained_topics import KEEP_S
from tests.support.mqtt import (
    HOME,
    PATIENCE_S,
    free_port,
    listening,
    needs_mosquitto,
    run,
    running,
)

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

NODE = """
import sys, uvloop
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
broker = BrokerAddress.parse(sys.argv[1])
uvloop.run(NodeStatusPublisher(broker=broker, cluster="home", node_id="d1").run())
"""


@contextlib.asynccontextmanager
async def presence(broker: EmbeddedBroker) -> AsyncIterator[NodeStatusPublisher]:
    """A node that is seen."""
    node = NodeStatusPublisher(
        broker=BrokerAddress.parse(broker.url), cluster="home", node_id="d1", session="s1"
    )
    async with running(node.run()):
        await node.connected()
        yield node


def test_node_publishes_its_status_and_clears_it_on_leaving() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            async with presence(broker) as node:
                node.publish_presence("ready")
                node.publish_state({"role": "drafter", "model": "tiny"})
                async with listening(broker) as listener:
                    await listener.expect(HOME.node_state("d1"))
                async with Client(broker.url, "home") as client:
                    [view] = (await client.nodes()).values()
                    assert view.is_here
                    assert view.status is not None
                    assert (view.status.state, view.status.session) == ("ready", "s1")
                    assert view.state == {"role": "drafter", "model": "tiny"}
            async with Client(broker.url, "home") as client:
                [view] = (await client.nodes()).values()
                assert not view.is_here
                assert view.state == {}

    run(scenario())


def test_will_of_a_former_process_is_corrected() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker, presence(broker) as node:
            node.publish_presence("ready")
            async with listening(broker) as listener:
                await listener.expect(HOME.node_status("d1"))
                listener.send(HOME.node_status("d1"), {"state": "lost", "session": "s0", "ts": 1.0})
                said = await listener.expect(HOME.node_status("d1"), 3)
                assert json.loads(said[2].payload)["state"] == "ready"

    run(scenario())


def test_status_expires_and_is_renewed_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.05)

    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker, presence(broker) as node:
            node.publish_presence("ready")
            async with listening(broker) as listener:
                said = await listener.expect(HOME.node_status("d1"), 4)
                assert len({message.payload for message in said}) == 1
                assert all(0 < (message.expiry_s or 0) <= KEEP_S for message in said)

    run(scenario())


def test_killed_node_is_lost() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker, listening(broker) as listener:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", NODE, broker.url)
            first = await listener.expect_json(HOME.node_status("d1"))
            process.send_signal(signal.SIGKILL)
            last = json.loads((await listener.expect(HOME.node_status("d1"), 2))[1].payload)
            assert (first["state"], last["state"]) == ("starting", "lost")
            assert first["session"] == last["session"]
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()

    run(scenario())


def test_state_is_published_again_after_the_broker_lost_it() -> None:
    async def scenario() -> None:
        port = free_port()
        async with contextlib.AsyncExitStack() as stack:
            async with EmbeddedBroker(port=port) as broker:
                node = await stack.enter_async_context(presence(broker))
                node.publish_state({"role": "drafter"})
            async with EmbeddedBroker(port=port) as broker, listening(broker) as listener:
                assert (await listener.expect_json(HOME.node_state("d1")))["role"] == "drafter"
            await stack.aclose()

    run(scenario())
