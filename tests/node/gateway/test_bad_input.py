"""Bad requests get a clear answer on a real Mosquitto, and the gateway continues."""

from __future__ import annotations

import json

import pytest

from tests.node.gateway.gateway_talk import answer, ask, assert_still_answers
from tests.support.mqtt import HOME, gateway_harness, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

BAD_BODIES: list[tuple[str, bytes, str, str | None]] = [
    ("malformed JSON", b'{"prompt": "x"', "invalid_json", None),
    ("not an object", b"[1]", "invalid_json", None),
    ("not UTF-8", b'{"prompt": "\xff"}', "invalid_encoding", None),
    ("deep nesting", b"[" * 100_000, "invalid_json", None),
    ("wrong type", b'{"prompt": 5}', "invalid_type", "prompt"),
    ("no prompt", b"{}", "missing_required_parameter", "prompt"),
    ("empty prompt", b'{"prompt": ""}', "empty_prompt", "prompt"),
    (
        "max_tokens of 0",
        b'{"prompt": "x", "max_tokens": 0}',
        "integer_below_min_value",
        "max_tokens",
    ),
    (
        "max_tokens of a billion",
        b'{"prompt": "x", "max_tokens": 1000000000}',
        "integer_above_max_value",
        "max_tokens",
    ),
    (
        "temperature of -1",
        b'{"prompt": "x", "temperature": -1}',
        "decimal_below_min_value",
        "temperature",
    ),
    (
        "temperature of NaN",
        b'{"prompt": "x", "temperature": NaN}',
        "decimal_below_min_value",
        "temperature",
    ),
    ("unknown model", b'{"prompt": "x", "model": "huge"}', "model_not_found", "model"),
    (
        "foreign reply topic",
        b'{"prompt": "x", "reply_to": "zigbee2mqtt/lock/set"}',
        "reply_topic_refused",
        "reply_to",
    ),
    ("bad id", b'{"prompt": "x", "id": "a/b"}', "invalid_value", "id"),
]


@pytest.mark.parametrize(
    ("body", "code", "parameter"), [each[1:] for each in BAD_BODIES], ids=[b[0] for b in BAD_BODIES]
)
def test_bad_body_gets_an_error_and_breaks_nothing(
    body: bytes, code: str, parameter: str | None
) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.listener.send(
                HOME.request("completion"), body, correlation=b"bad", user=(("client", "cli"),)
            )
            [message] = await home.listener.expect(HOME.response("cli", "bad"))
            error = json.loads(message.payload)["error"]
            assert (error["code"], error["param"]) == (code, parameter)
            assert message.correlation == b"bad"
            assert home.service.requests == []
            await assert_still_answers(home)

    run(scenario())


def test_oversized_payload_is_refused() -> None:
    async def scenario() -> None:
        async with gateway_harness(max_request_bytes=1000) as home:
            home.listener.send(
                HOME.request("ask"), "x" * 1001, correlation=b"big", user=(("client", "cli"),)
            )
            assert (await answer(home, "big"))["error"]["code"] == "request_too_large"
            await assert_still_answers(home)

    run(scenario())


@pytest.mark.parametrize("num_bytes", [300_000, 900_000])
def test_oversized_body_is_refused_to_its_client(num_bytes: int) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "big", prompt="x" * num_bytes)
            assert (await answer(home, "big"))["error"]["code"] == "request_too_large"
            reply_to = HOME.response("cli", "else/where")
            ask(home, "other", prompt="x" * num_bytes, reply_to=reply_to)
            final = await home.listener.expect_json(reply_to)
            assert final["error"]["code"] == "request_too_large"
            await assert_still_answers(home)

    run(scenario())


def test_reply_topic_of_another_client_gets_nothing() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "1", reply_to=HOME.response("alice", "77"))
            assert (await answer(home, "1"))["error"]["code"] == "reply_topic_refused"
            ask(home, "2", client=None, reply_to=HOME.response("alice", "77"))
            assert (await answer(home, "2", "anon"))["error"]["code"] == "reply_topic_refused"
            await assert_still_answers(home)
            assert len(home.service.requests) == 1
            assert not [m for m in home.listener.received if "/alice/" in m.topic]

    run(scenario())
