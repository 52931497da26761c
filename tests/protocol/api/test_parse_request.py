"""Client, request id and reply topic of a request, also of an invalid one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.openai import RequestLimits
from edgecosine.protocol.api.parse_request import RefusedRequest, RequestParser
from edgecosine.protocol.api.request import RequestKind
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.topics import Topics, is_identifier

HOME = Topics("home")
INTAKE = RequestParser(HOME, max_request_bytes=1000, draw_id=lambda: "drawn", draw_seed=lambda: 7)


def read(
    body: bytes | dict[str, Any], kind: RequestKind = "completion", **properties: Any
) -> RequestRecord | RefusedRequest:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return INTAKE.read(kind, Incoming(HOME.request(kind), payload, **properties), RequestLimits())


@pytest.mark.parametrize(
    ("body", "properties", "key"),
    [
        ({}, {}, "anon/drawn"),
        ({"client": "a", "id": "1"}, {}, "a/1"),
        ({"client": "a", "id": 1}, {}, "a/1"),
        ({"client": "a", "id": "1"}, {"client": "b", "correlation": b"2"}, "b/1"),
        ({}, {"client": "b", "correlation": b"2"}, "b/2"),
        ({}, {"client": "b/c", "correlation": b"\xff"}, "anon/drawn"),
        ({}, {"correlation": "٣".encode()}, "anon/drawn"),
        ({"client": "a b", "id": "a b"}, {}, "anon/drawn"),
        (b"{", {"client": "b", "correlation": b"2"}, "b/2"),
        (b"x" * 1001, {"client": "b", "correlation": b"2"}, "b/2"),
    ],
)
def test_client_and_request_ids_are_read_in_order_of_precedence(
    body: bytes | dict[str, Any], properties: dict[str, Any], key: str
) -> None:
    if isinstance(body, dict):
        body = {"prompt": "x", **body}
    ticket = read(body, **properties).ticket
    assert ticket.key == key
    assert ticket.reply_topic == f"edgecosine/home/response/{key}"


def test_property_precedes_the_body_as_reply_topic() -> None:
    topics = [f"edgecosine/home/response/me/{name}" for name in "ab"]
    body = {"prompt": "x", "client": "me", "reply_to": topics[1]}
    assert read(body).ticket.reply_topic == topics[1]
    assert read(body, response_topic=topics[0]).ticket.reply_topic == topics[0]
    assert read(b"{", response_topic=topics[0]).ticket.reply_topic == topics[0]


@pytest.mark.parametrize(
    "topic",
    [
        "zigbee2mqtt/lock/set",
        "",
        5,
        ["x"],
        HOME.response("b", "1"),
        HOME.response("a", ""),
        HOME.response("ab", "1"),
        HOME.response("a", "1").replace("/a/", "//"),
    ],
)
def test_refusal_of_a_foreign_reply_topic_goes_to_the_clients_own(topic: object) -> None:
    reading = read({"prompt": "x", "client": "a", "id": "1", "reply_to": topic})
    assert isinstance(reading, RefusedRequest)
    assert reading.error.parameter == "reply_to"
    assert reading.ticket.reply_topic == HOME.response("a", "1")


def test_anonymous_request_cannot_use_a_clients_reply_topic() -> None:
    reading = read({"prompt": "x", "id": "1", "reply_to": HOME.response("alice", "77")})
    assert isinstance(reading, RefusedRequest)
    assert reading.ticket.reply_topic == HOME.response("anon", "1")


def test_response_topic_is_the_last_source_of_the_client_id() -> None:
    topic = HOME.response("me", "77")
    assert read({"prompt": "x"}, response_topic=topic).ticket.client_id == "me"
    for named in ({"client": "you"}, {}):
        reading = read(
            {"prompt": "x", **named}, response_topic=topic, client=None if named else "you"
        )
        assert isinstance(reading, RefusedRequest)
        assert reading.error.code == "reply_topic_refused"
        assert reading.ticket.client_id == "you"


@pytest.mark.parametrize(
    ("body", "properties", "topic"),
    [
        ({"client": "me", "id": 7}, {}, HOME.response("me", "7")),
        ({"client": "me", "reply_to": HOME.response("me", "x/y")}, {}, HOME.response("me", "x/y")),
        ({"client": "me", "reply_to": "lock/set"}, {}, HOME.response("me", "drawn")),
        ({"client": ["me"], "id": "x" * 2000}, {"correlation": b"7"}, HOME.response("anon", "7")),
        ({}, {"response_topic": HOME.response("me", "1")}, HOME.response("me", "1")),
    ],
)
def test_refusal_of_a_too_large_request_goes_to_its_client(
    body: dict[str, Any], properties: dict[str, Any], topic: str
) -> None:
    for whole in ({"prompt": "x" * 5000, **body}, {**body, "prompt": "x" * 5000}):
        reading = read(whole, **properties)
        assert isinstance(reading, RefusedRequest)
        assert reading.ticket.reply_topic == topic
        if body.get("reply_to") != "lock/set":
            assert (reading.error.code, reading.error.status) == ("request_too_large", 413)


@pytest.mark.parametrize("body", [b"[" * 9000, b'{"client":' + b"[" * 9000, b'{"id":"\xff' * 999])
def test_large_body_that_is_no_request_is_refused(body: bytes) -> None:
    reading = read(body, client="me")
    assert isinstance(reading, RefusedRequest)
    assert reading.ticket.client_id == "me"


def test_deadline_is_the_earlier_of_expiry_and_deadline() -> None:
    for deadline_ms, expiry_s, expected in ((5000, 9.0, 5.0), (5000, 2.0, 2.0), (None, 3.0, 3.0)):
        reading = read({"prompt": "x", "deadline_ms": deadline_ms}, expiry_s=expiry_s)
        assert isinstance(reading, RequestRecord)
        assert reading.request.deadline_s == expected


def test_bare_prompt_is_a_request() -> None:
    reading = read(b"hm", "ask", client="a", correlation=b"1")
    assert isinstance(reading, RequestRecord)
    assert (reading.request.key, reading.request.prompt) == ("a/1", "hm")
    for payload in (b"", b"\xff"):
        assert isinstance(read(payload, "ask"), RefusedRequest)


def test_digest_identifies_kind_and_body() -> None:
    one, same, other = (read({"prompt": each}).ticket.digest for each in ("x", "x", "y"))
    assert one == same != other
    assert read(b"x", "ask").ticket.digest != read(b"x", "chat").ticket.digest


def test_correlation_and_stream_are_kept() -> None:
    ticket = read({"prompt": "x", "stream": True}, correlation=b"\x00\xff").ticket
    assert ticket.correlation == b"\x00\xff"
    assert ticket.wants_stream


@given(
    payload=st.binary(max_size=100),
    kind=st.sampled_from(["chat", "completion", "ask"]),
    client=st.none() | st.text(max_size=10),
    correlation=st.none() | st.binary(max_size=10),
    response_topic=st.none() | st.text(max_size=10),
)
def test_every_message_is_parsed_or_refused(
    payload: bytes, kind: RequestKind, **properties: Any
) -> None:
    ticket = read(payload, kind, **properties).ticket
    assert is_identifier(ticket.client_id)
    assert is_identifier(ticket.request_id)
    assert HOME.check_reply(ticket.reply_topic)
