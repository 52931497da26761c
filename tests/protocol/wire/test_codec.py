"""Every message comes back as it went; every other byte string is the peer's error."""

from __future__ import annotations

import tracemalloc

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import LocalProtocolError, RemoteProtocolError
from edgecosine.protocol.wire.codec import decode, encode, tag_of
from edgecosine.protocol.wire.framing import MAX_FRAME_BYTES
from edgecosine.protocol.wire.messages import (
    MAX_DRAFT_TOKENS,
    MAX_PREFIX_TOKENS,
    MAX_VOCABULARY_BLOCKS,
    AnyMessage,
    Draft,
    DraftRequest,
    Judgement,
    OutOfStep,
    Ping,
    Refuse,
    Reveal,
    SharedNoise,
)
from tests.protocol.wire.values import hello, messages


@given(messages)
def test_every_message_round_trips(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_random_bytes_decode_or_raise_remote_error(payload: bytes) -> None:
    try:
        message = decode(payload)
    except RemoteProtocolError:
        return
    assert decode(encode(message)) == message


@given(messages, st.data())
def test_damaged_messages_decode_or_raise_remote_error(
    message: AnyMessage, data: st.DataObject
) -> None:
    payload = bytearray(encode(message))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(payload))
    except RemoteProtocolError:
        return


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(
    st.sampled_from(["hello", "refuse", "ping", "draft?", "draft", "judge?", "judgement"]),
    st.lists(plain_values),
)
def test_invalid_fields_raise_remote_error(tag: str, fields: list[object]) -> None:
    try:
        message = decode(msgpack.packb([tag, *fields]))
    except RemoteProtocolError:
        return
    assert tag_of(message) == tag


HOSTILE = {
    "nothing": b"",
    "a reserved byte": b"\xc1",
    "two values": b"\xc0\xc0",
    "an array header of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map header of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a map": b"\x81\x01\x02",
    "a byte string header of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "an extension": b"\xc7\x05\x2ahello",
    "a time stamp": b"\xd6\xffabcd",
    "text that is no UTF-8": b"\xa2\xff\xfe",
    "a hundred thousand nested arrays": b"\x91" * 100_000 + b"\xc0",
    "a thousand nested wide arrays": b"\xdc\x01\x00" * 1000,
    "lists of lists": b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x90" * 256) * 256,
    "an unknown message": msgpack.packb(["become"]),
    "a number for a name": msgpack.packb([7, 1]),
    "an empty array": b"\x90",
    "a bare string": msgpack.packb("ping"),
    "a missing field": msgpack.packb(["ping"]),
    "a negative count": msgpack.packb(["ping", -1]),
    "a count beyond its bound": msgpack.packb(["ping", 1 << 40]),
    "text for a number": msgpack.packb(["ping", "1"]),
    "a node id with a slash": encode(hello(node_id="a/b")),
    "half a vocabulary digest": encode(hello(vocabulary=b"1234567")),
    "half a token": encode(DraftRequest("a", 0, 4, 0, b"123", 1)),
    "more new tokens than prefix": encode(DraftRequest("a", 0, 1, 0, bytes(8), 1)),
    "too many tokens asked": encode(DraftRequest("a", 0, 1, 0, b"", MAX_DRAFT_TOKENS + 1)),
    "a temperature that is no number": encode(
        DraftRequest("a", 0, 1, 0, b"", 1, coupling=SharedNoise(temperature=float("nan")))
    ),
    "a negative temperature": encode(
        DraftRequest("a", 0, 1, 0, b"", 1, coupling=SharedNoise(temperature=-1.0))
    ),
    "a draft cut off": encode(Draft("a", 0, b"12345", b"1")),
    "a draft without confidences": encode(Draft("a", 0, bytes(8), b"")),
    "a draft with one parent for two": encode(Draft("a", 0, bytes(8), b"12", parents=b"\0")),
    "a judgement of nothing": encode(Judgement("a", 0, b"")),
    "half a log-sum-exp": encode(Judgement("a", 0, b"123456")),
    "a listed token without its logit": encode(Judgement("a", 0, bytes(4), bytes(8), bytes(4))),
    "lists of different lengths": encode(Judgement("a", 0, bytes(8), bytes(12), bytes(12))),
    "one bound for two nodes": encode(Judgement("a", 0, bytes(8), score_bounds=bytes(4))),
    "half a token to reveal": encode(Reveal("a", 0, 0, b"123")),
    "a node that no tree has": encode(Reveal("a", 0, MAX_DRAFT_TOKENS)),
    "a child before its parent": encode(Draft("a", 0, bytes(8), b"12", parents=b"\0\2")),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_raise_remote_error(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="the peer sent"):
        decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x90" * 256) * 256,
        (b"\xdc\x01\x00" + b"\x90" * 255) * 1000,
        b"\xdc\x01\x00" * 1000,
        b"\x91" * MAX_FRAME_BYTES,
    ],
    ids=["wide", "deep and wide", "open arrays", "deep"],
)
def test_decoded_message_is_not_much_larger_than_its_frame(payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_FRAME_BYTES


def test_longest_prefix_and_longest_greeting_fit_their_frames() -> None:
    prefix = DraftRequest(
        "k" * 160, 1, MAX_PREFIX_TOKENS, 7, bytes(4 * MAX_PREFIX_TOKENS), num_tokens=64
    )
    assert len(encode(prefix)) < MAX_FRAME_BYTES
    assert decode(encode(prefix)) == prefix
    greeting = hello(vocabulary=bytes(8 * MAX_VOCABULARY_BLOCKS), model="m" * 256)
    refusal = Refuse("r" * 1024, block_index=3, block=[bytes(256)] * 256)
    for message in (greeting, refusal):
        assert len(encode(message)) < 256 << 10
        assert decode(encode(message)) == message


def test_fields_appended_by_a_later_release_are_ignored() -> None:
    assert decode(msgpack.packb(["ping", 3, "new"])) == Ping(3)
    assert decode(msgpack.packb(["outofstep", "a", 1, 2])) == OutOfStep("a", 1, 2)


def test_unencodable_message_raises_local_error() -> None:
    with pytest.raises(LocalProtocolError, match="cannot send this ping"):
        encode(msgspec.structs.replace(Ping(1), number=1 << 80))


def test_greetings_of_earlier_and_later_releases_are_decoded() -> None:
    ours = hello(max_context=64)
    items = msgpack.unpackb(encode(ours))
    assert decode(msgpack.packb(items[:9])) == hello()
    assert decode(msgpack.packb([*items, "of a later release"])) == ours
