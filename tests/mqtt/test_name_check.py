"""Two nodes of one name: the second one gets an error, and the first one is not disturbed."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.errors import ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.name_check import check_name
from edgecosine.mqtt.node_status import NodeStatusPublisher
from tests.support.mqtt import HOME, free_port, listening, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def test_second_node_of_a_name_is_refused() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            node = NodeStatusPublisher(broker=address, cluster="home", node_id="d1", session="s1")
            async with running(node.run()):
                await node.connected()
                node.publish_presence("ready")
                with pytest.raises(ConfigError, match=r"node_id = .d1.*--node-id"):
                    await check_name(address, "home", "d1")
                await check_name(address, "home", "d2")
                async with listening(broker) as listener:
                    said = await listener.expect_json(HOME.node_status("d1"))
                assert (said["state"], said["session"]) == ("ready", "s1")

    run(scenario())


def test_name_of_a_dead_node_is_free() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker, listening(broker) as listener:
            address = BrokerAddress.parse(broker.url)
            await check_name(address, "home", "d1")
            retained = {"state": "ready", "session": "s0", "ts": 1.0}
            listener.send(HOME.node_status("d1"), retained, retain=True)
            await listener.expect(HOME.node_status("d1"), 2)
            await check_name(address, "home", "d1")

    run(scenario())


def test_one_of_two_concurrent_nodes_gets_the_name() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            is_asked_for = asyncio.Event()

            async def start() -> bool:
                try:
                    await check_name(address, "home", "d1")
                except ConfigError:
                    is_asked_for.set()
                    return False
                node = NodeStatusPublisher(broker=address, cluster="home", node_id="d1")
                async with running(node.run()):
                    await node.connected()
                    await is_asked_for.wait()
                return True

            async with asyncio.TaskGroup() as group:
                both = [group.create_task(start()) for _ in range(2)]
            assert sorted(task.result() for task in both) == [False, True]

    run(scenario())
