"""The name of a node gives no access to its connection or to its session."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgecosine.client.client import Client
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import connect
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.security.client_ids import SECRET_FILE, ClientIds
from tests.node.gateway.gateway_talk import answer, ask
from tests.support.fakes import ScriptedService
from tests.support.mqtt import (
    HOME,
    free_port,
    gateway_harness,
    listening,
    needs_mosquitto,
    run,
    running,
)

pytestmark = needs_mosquitto

GUESSES = (
    "edgecosine-home-t1-gateway",
    "edgecosine-home-t1-sharing",
    "edgecosine-home-t1",
    "me",
)


def test_name_of_a_node_is_not_enough_to_take_over_its_connection() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness() as home,
            Client(home.broker.url, "home", client_id="me") as client,
        ):
            address = BrokerAddress.parse(home.broker.url)
            for probe in GUESSES:
                async with connect(address, client_id=probe):
                    pass
            ask(home, "1")
            assert (await answer(home, "1"))["choices"]
            assert await client.is_online()
            statuses = [m.payload for m in home.listener.received if m.topic == HOME.status]
            assert statuses == [b"online"]

    run(scenario())


def test_session_is_resumed_by_the_next_process_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)

            def gateway() -> Gateway:
                return Gateway(
                    ScriptedService(), broker=address, cluster="home", node_id="t1",
                    journal=DiskJournal(tmp_path), client_ids=ClientIds.kept_in(tmp_path),
                )  # fmt: skip

            first = gateway()
            async with running(first.run()):
                await first.client.connected()
            async with listening(broker) as listener:
                body = {"client": "cli", "id": "1", "prompt": "or not"}
                listener.send(HOME.request("completion"), body)
                await listener.expect(HOME.request("completion"))
                async with connect(address, client_id=GUESSES[0], version="5"):
                    pass
                async with running(gateway().run()):
                    final = await listener.expect_json(HOME.response("cli", "1"))
                    assert final["choices"][0]["text"] == "to be"

    run(scenario())


def test_secret_is_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        ids = ClientIds.kept_in(tmp_path)
        async with EmbeddedBroker(port=free_port()) as broker:
            presence = NodeStatusPublisher(
                broker=BrokerAddress.parse(broker.url), cluster="home", node_id="d1",
                client_ids=ids,
            )  # fmt: skip
            async with running(presence.run()):
                await presence.connected()

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    tail = ClientIds.kept_in(tmp_path).of("edgecosine-home-d1").rpartition("-")[2]
    assert "connected to broker" in caplog.text
    for secret in (tail, (tmp_path / SECRET_FILE).read_text().strip()):
        assert secret not in caplog.text
