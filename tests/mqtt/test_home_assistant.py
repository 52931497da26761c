"""Home Assistant sees each node and the cluster as devices, by the topics that exist anyway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from edgecosine.client.forget import forget
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.protocol.api.home_assistant import (
    ONLINE,
    STATUS_TOPIC,
    cluster_device,
    cluster_topic,
    node_device,
    node_topic,
)
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.messages import Role
from tests.support.mqtt import HOME, free_port, listening, needs_mosquitto, run, running

DEVICES = "homeassistant/device/#"


def config(role: Role) -> Mapping[str, Any]:
    device = node_device(HOME, "n.1", role, "tiny", "1.0")
    assert device.retain
    found: Mapping[str, Any] = json.loads(device.payload)
    return found


@pytest.mark.parametrize("role", ["target", "drafter"])
def test_device_has_what_home_assistant_demands(role: Role) -> None:
    device = config(role)
    assert device["origin"]["name"]
    assert device["device"]["identifiers"] == ["edgecosine_home_n.1"]
    assert device["device"]["via_device"] == "edgecosine_home"
    assert device["state_topic"] == HOME.node_state("n.1")
    components = device["components"]
    assert {"status", "speed"} < set(components)
    assert len({each["unique_id"] for each in components.values()}) == len(components)
    assert all(each["platform"] == "sensor" and each["name"] for each in components.values())
    [availability] = device["availability"]
    assert availability["topic"] == HOME.node_status("n.1")


@pytest.mark.parametrize("name", ["n.1", "a_b-C9", "x" * 64])
def test_topics_have_the_form_that_home_assistant_reads(name: str) -> None:
    for topic in (node_topic(Topics(name), name), cluster_topic(Topics(name))):
        prefix, component, *objects, last = topic.split("/")
        assert (prefix, component, last) == ("homeassistant", "device", "config")
        assert 1 <= len(objects) <= 2
        for each in objects:
            assert each.replace("_", "").replace("-", "").isalnum()


def test_cluster_is_a_device_too() -> None:
    device = json.loads(cluster_device(HOME, "1.0").payload)
    assert device["device"]["identifiers"] == ["edgecosine_home"]
    topics = {each["state_topic"] for each in device["components"].values()}
    assert topics == {HOME.status, HOME.info}


@needs_mosquitto
def test_device_is_sent_again_when_home_assistant_starts_and_removed_with_the_node() -> None:
    device = node_device(HOME, "d1", "drafter", "tiny", "1.0")

    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            async with listening(broker, DEVICES, HOME.node_status("d1")) as listener:
                node = NodeStatusPublisher(
                    broker=address, cluster="home", node_id="d1", devices=[device]
                )
                async with running(node.run()):
                    [first] = await listener.expect(device.topic)
                    assert first.payload == device.payload
                    for payload in (b"offline", ONLINE):
                        listener.send(STATUS_TOPIC, payload)
                    assert [each.payload for each in await listener.expect(device.topic, 2)] == [
                        device.payload
                    ] * 2
                async with listening(broker, DEVICES, name="late") as late:
                    [kept] = await late.expect(device.topic)
                    assert kept.payload == device.payload
                await forget(address, "home", "d1")
                assert (await listener.expect(device.topic, 3))[-1].payload == b""

    run(scenario())


@needs_mosquitto
def test_nothing_is_announced_unless_asked_for() -> None:
    async def scenario() -> None:
        async with (
            EmbeddedBroker(port=free_port()) as broker,
            listening(broker, DEVICES, HOME.node_status("d1")) as listener,
        ):
            address = BrokerAddress.parse(broker.url)
            node = NodeStatusPublisher(broker=address, cluster="home", node_id="d1")
            async with running(node.run()):
                await node.connected()
                listener.send(STATUS_TOPIC, ONLINE)
                node.publish_presence("ready")
                await listener.expect(HOME.node_status("d1"), 2)
                assert {each.topic for each in listener.received} == {HOME.node_status("d1")}

    run(scenario())
