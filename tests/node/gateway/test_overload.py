"""Overload of a real gateway on a real broker, with a slow scripted engine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.request import Request
from tests.support.cluster import harness as engine_harness
from tests.support.engines import ScriptedTarget, alone, babble
from tests.support.mqtt import HOME, Listener, free_port, listening, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

LANGUAGE = babble()
MAX_SESSIONS, MAX_QUEUED, NUM_TOKENS = 2, 6, 4


class Brake:
    """Holds the engine until its passes are allowed."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self._is_off = False

    def __call__(self, _number: int, _keys: list[str]) -> None:
        if not self._is_off:
            assert self._allowed.acquire(timeout=20)

    def release(self) -> None:
        """All passes are allowed from now on."""
        self._is_off = True
        self._allowed.release(100)


@contextlib.asynccontextmanager
async def overloaded() -> AsyncIterator[tuple[Gateway, Listener, Brake]]:
    """A gateway before an engine that makes no pass by itself."""
    brake = Brake()
    async with (
        EmbeddedBroker(port=free_port()) as broker,
        engine_harness(
            ScriptedTarget(LANGUAGE, before_pass=brake), max_sessions=MAX_SESSIONS
        ) as engine,
    ):
        gateway = Gateway(
            engine.service, broker=BrokerAddress.parse(broker.url), cluster="home", node_id="t1",
            max_queued=MAX_QUEUED,
        )  # fmt: skip
        try:
            async with running(gateway.run()):
                await gateway.client.connected()
                async with listening(broker) as listener:
                    yield gateway, listener, brake
        finally:
            brake.release()


def ask(listener: Listener, client: str, number: int, **fields: Any) -> str:
    """Ask; gives where the answer goes."""
    name = f"{client}-{number}"
    body = {
        "client": client, "id": name, "prompt": "hm", "max_tokens": NUM_TOKENS,
        "ignore_eos": True, "stream": True, **fields,
    }  # fmt: skip
    listener.send(HOME.request("completion"), body)
    return HOME.response(client, name)


def finals(listener: Listener) -> dict[str, list[Any]]:
    """The final messages by topic."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for message in listener.received:
        if message.topic.startswith(f"{HOME.root}/response/"):
            found[message.topic].append(json.loads(message.payload))
    return found


TEXT = alone(
    LANGUAGE, Request("", "", "completion", "hm", max_tokens=NUM_TOKENS, ignore_eos=True)
).text


def test_excess_requests_are_refused_and_the_others_answered() -> None:
    """Six times the requests that fit: each ends once, refusals have `retry_after_s`, the moderate
    client gets its answers beside the flooding one's, and all slots are free afterwards."""

    async def scenario() -> None:
        async with overloaded() as (gateway, listener, brake):
            hog = [ask(listener, "hog", number) for number in range(6 * MAX_QUEUED)]
            await listener.expect(hog[-1])
            polite = [ask(listener, "polite", number) for number in range(2)]
            await listener.expect_state("polite-1", "queued")
            assert gateway.admission.num_queued <= MAX_QUEUED
            brake.release()
            for topic in (*hog, *polite):
                await listener.expect(topic)
            ends = finals(listener)
            assert {len(bodies) for bodies in ends.values()} == {1}
            codes: Counter[str] = Counter()
            for topic in hog:
                [body] = ends[topic]
                if "error" in body:
                    codes[body["error"]["code"]] += 1
                    assert body["error"]["retry_after_s"] > 0
                    assert body["error"]["status"] == 429
                else:
                    assert body["choices"][0]["text"] == TEXT
            # Its share of the queue, beside the running sessions.
            assert codes == {"overloaded": len(hog) - MAX_SESSIONS - MAX_QUEUED // 2}
            assert all(ends[topic][0]["choices"][0]["text"] == TEXT for topic in polite)
            assert gateway.admission.num_queued == gateway.admission.num_running == 0
            after = ask(listener, "polite", 99)
            assert (await listener.expect_json(after))["choices"][0]["text"] == TEXT

    run(scenario())


def test_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with overloaded() as (gateway, listener, brake):
            gateway.admission.pace.observe(NUM_TOKENS, NUM_TOKENS, 60.0)
            for number in range(MAX_SESSIONS):
                ask(listener, "hog", number)
            impatient = ask(listener, "me", 1, deadline_ms=1000)
            patient = ask(listener, "me", 2, deadline_ms=600_000)
            error = (await listener.expect_json(impatient))["error"]
            assert (error["code"], error["status"]) == ("overloaded", 503)
            assert error["retry_after_s"] > 30
            brake.release()
            assert (await listener.expect_json(patient))["choices"][0]["text"] == TEXT

    run(scenario())


def test_slots_are_shared_by_client_and_not_by_number_of_requests() -> None:
    async def scenario() -> None:
        async with overloaded() as (_, listener, brake):
            for number in range(MAX_SESSIONS + MAX_QUEUED // 2):
                ask(listener, "hog", number)
            ask(listener, "polite", 1)
            ask(listener, "hog", 98)
            await listener.expect(HOME.response("hog", "hog-98"))
            brake.release()
            for topic in (HOME.response("polite", "polite-1"), HOME.response("hog", "hog-4")):
                await listener.expect(topic)
            order = list(finals(listener))
            assert order.index(HOME.response("polite", "polite-1")) < order.index(
                HOME.response("hog", "hog-4")
            )

    run(scenario())


def test_urgent_request_overtakes_its_clients_own_queue() -> None:
    async def scenario() -> None:
        async with overloaded() as (_, listener, brake):
            names = [ask(listener, "me", number) for number in range(MAX_SESSIONS + 2)]
            urgent = ask(listener, "me", 9, priority=-1)
            await listener.expect_state("me-9", "queued")
            brake.release()
            for topic in (*names, urgent):
                await listener.expect(topic)
            order = list(finals(listener))
            assert order.index(urgent) < order.index(names[-1])

    run(scenario())


def test_cancelled_queued_request_makes_room() -> None:
    async def scenario() -> None:
        async with overloaded() as (_, listener, brake):
            for number in range(MAX_SESSIONS + MAX_QUEUED // 2):
                ask(listener, "me", number)
            last = f"me-{MAX_SESSIONS}"
            await listener.expect_state(last, "queued")
            listener.send(HOME.job_cancel(last), {"client": "me"})
            await listener.expect_state(last, "cancelled")
            again = ask(listener, "me", 50)
            brake.release()
            assert (await listener.expect_json(again))["choices"][0]["text"] == TEXT

    run(scenario())
