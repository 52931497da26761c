"""Floods of ordinary clients on a real Mosquitto: others are answered, and memory is bounded."""

from __future__ import annotations

import json

import pytest

from edgecosine.mqtt.inbox import Inbox
from edgecosine.node.gateway.gateway import MAX_UNREAD
from edgecosine.protocol.api.mqtt_message import Incoming
from tests.node.gateway.gateway_talk import answer, ask, assert_still_answers
from tests.support.mqtt import (
    HOME,
    GatewayHarness,
    gateway_harness,
    listening,
    needs_mosquitto,
    run,
)

FLOOD = 300
"""More than a sender's burst."""

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def flood(home: GatewayHarness, number: int, client: str = "flood") -> list[Incoming]:
    """Messages as they come from the broker, all at once."""
    body = {"client": client, "prompt": ["no", "prompt"]}
    return [
        Incoming(HOME.request("completion"), json.dumps({**body, "id": str(n)}).encode())
        for n in range(number)
    ]


def inbox_of(home: GatewayHarness) -> Inbox:
    return home.gateway.client._inbox


def test_other_clients_are_read_before_the_rest_of_a_flood() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            for message in flood(home, FLOOD):
                inbox_of(home).put(message, 1)
            await assert_still_answers(home)
            finals = [m for m in home.listener.received if "/response/flood/" in m.topic]
            assert len(finals) < FLOOD
            # Nothing of it is lost: each is refused in its turn.
            for number in range(FLOOD):
                final = await answer(home, str(number), "flood")
                assert final["error"]["code"] == "invalid_value"

    run(scenario())


def test_flood_beyond_the_inbox_is_refused_or_counted() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            messages = flood(home, MAX_UNREAD + 20)
            for message in messages[:-20]:
                inbox_of(home).put(message, 1)
            for message in messages[-20:-10]:
                inbox_of(home).put(message, 0)
            for message in messages[-10:]:
                inbox_of(home).put(message, 1)
            assert len(inbox_of(home)) == MAX_UNREAD
            assert home.gateway._counters.view()["unread_messages"] == 10
            for number in range(MAX_UNREAD + 10, MAX_UNREAD + 20):
                final = await answer(home, str(number), "flood")
                assert final["error"]["code"] == "overloaded"
            await assert_still_answers(home)

    run(scenario())


def test_flood_over_mqtt_does_not_block_other_clients() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            async with listening(home.broker, HOME.status, name="flood") as flooder:
                for number in range(300):
                    body = {"client": "flood", "id": str(number), "prompt": []}
                    flooder.send(HOME.request("chat"), body, qos=0)
                for number in range(5):
                    ask(home, f"h{number}")
                    assert "choices" in await answer(home, f"h{number}")
            assert len(inbox_of(home)) <= MAX_UNREAD

    run(scenario())
