"""The order of messages on a link, as tables; two sides talk through lists, without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import PeerMismatched, PeerRefused, RemoteProtocolError
from edgecosine.lab.fuzz.seeds import MESSAGES
from edgecosine.protocol.wire.codec import tag_of
from edgecosine.protocol.wire.handshake import Handshake, HandshakeState, printable
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Pong,
    Refuse,
)
from edgecosine.protocol.wire.vocabulary import ANY_VOCABULARY, Vocabulary
from tests.protocol.wire.values import hello, messages

OURS = hello()
DRAFTER: dict[str, Any] = {"node_id": "drafter-1", "role": "drafter"}
WORDS = Vocabulary.of([f"word{number}" for number in range(600)])
OTHER_WORDS = Vocabulary.of([f"word{number}" if number != 300 else "x" for number in range(600)])

SAMPLES = {tag_of(message): message for message in MESSAGES} | {"hello": hello(**DRAFTER)}
REACHED: dict[HandshakeState, list[str]] = {
    HandshakeState.GREETING: [],
    HandshakeState.AGREED: ["hello"],
    HandshakeState.READY: ["hello", "ping", "pong"],
    HandshakeState.REFUSING: [],
    HandshakeState.CLOSED: ["hello", "refuse"],
}
EXPECTED: dict[HandshakeState, dict[str, HandshakeState]] = {
    HandshakeState.GREETING: {"hello": HandshakeState.AGREED, "refuse": HandshakeState.CLOSED},
    HandshakeState.AGREED: {
        "ping": HandshakeState.AGREED,
        "pong": HandshakeState.READY,
        "refuse": HandshakeState.CLOSED,
    },
    HandshakeState.READY: {
        "ping": HandshakeState.READY,
        "pong": HandshakeState.READY,
        "draft": HandshakeState.READY,
        "outofstep": HandshakeState.READY,
        "leave": HandshakeState.READY,
        "refuse": HandshakeState.CLOSED,
    },
    HandshakeState.CLOSED: {},
}


def brought_to(state: HandshakeState) -> Handshake:
    handshake = Handshake(OURS, ANY_VOCABULARY)
    for name in REACHED[state]:
        handshake.receive(SAMPLES[name])
    assert handshake.state is state
    return handshake


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("state", EXPECTED)
def test_each_message_in_each_state(state: HandshakeState, name: str) -> None:
    handshake = brought_to(state)
    expected = EXPECTED[state].get(name)
    if expected is None:
        with pytest.raises(RemoteProtocolError, match="the peer sent"):
            handshake.receive(SAMPLES[name])
        assert handshake.state is state
    else:
        assert handshake.receive(SAMPLES[name]) is expected


@pytest.mark.parametrize("name", ["draft", "outofstep"])
def test_target_may_not_send_messages_of_a_drafter(name: str) -> None:
    handshake = Handshake(hello(**DRAFTER), ANY_VOCABULARY)
    for message in (hello(), Pong(0), SAMPLES["draft?"], SAMPLES["release"]):
        handshake.receive(message)
    with pytest.raises(RemoteProtocolError, match="while ready"):
        handshake.receive(SAMPLES[name])


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"protocol": 2, "cluster": "x"}, "protocol 2 there, 1 here: install the same release"),
    ({"cluster": "x", "node_id": "target-1"}, "cluster x there, lab here: start both nodes with"),
    ({"node_id": "target-1", "role": "target"}, "this is the node itself: leave its own address"),
    ({"node_id": "target-1", "incarnation": 7}, "two nodes are called target-1: give each"),
    ({"role": "target"}, "both nodes are targets: a target links with drafters and members only"),
]


@pytest.mark.parametrize(("changes", "reason"), MISFITS, ids=[reason for _, reason in MISFITS])
def test_incompatible_peer_is_refused_with_advice(changes: dict[str, Any], reason: str) -> None:
    handshake = Handshake(OURS, WORDS)
    assert handshake.receive(hello(**(DRAFTER | changes))) is HandshakeState.REFUSING
    assert handshake.refusal is not None
    assert handshake.refusal.reason.startswith(reason)
    assert isinstance(handshake.ending, PeerMismatched)


def test_two_drafters_are_refused() -> None:
    handshake = Handshake(hello(**DRAFTER), ANY_VOCABULARY)
    handshake.receive(hello(role="drafter"))
    assert "a drafter links with targets only" in str(handshake.ending)


def test_both_sides_name_the_first_token_that_differs() -> None:
    target = Handshake(hello(vocabulary=WORDS.digests), WORDS)
    drafter_hello = hello(**DRAFTER, vocabulary=OTHER_WORDS.digests)
    drafter = Handshake(drafter_hello, OTHER_WORDS)
    assert target.receive(drafter_hello) is HandshakeState.REFUSING
    assert drafter.receive(hello(vocabulary=WORDS.digests)) is HandshakeState.REFUSING
    assert target.refusal is not None
    assert drafter.refusal is not None
    for name in ("ping", "draft"):
        assert target.receive(SAMPLES[name]) is HandshakeState.REFUSING
    assert drafter.receive(target.refusal) is HandshakeState.CLOSED
    assert target.receive(drafter.refusal) is HandshakeState.CLOSED
    assert "token 300 is b'word300' here and b'x' there" in str(target.ending)
    assert "token 300 is b'x' here and b'word300' there" in str(drafter.ending)


@pytest.mark.parametrize("block_index", [-1, 0, 2])
def test_refusal_of_another_vocabulary_block_names_no_token(block_index: int) -> None:
    target = Handshake(OURS, WORDS)
    target.receive(hello(**DRAFTER, vocabulary=OTHER_WORDS.digests))
    target.receive(Refuse("no", block_index=block_index, block=[b"x"]))
    assert str(target.ending) == "the vocabularies differ: serve models with the same tokenizer"


@pytest.mark.parametrize("theirs", [b"", WORDS.digests])
def test_equal_or_empty_vocabulary_is_accepted(theirs: bytes) -> None:
    handshake = Handshake(OURS, WORDS)
    assert handshake.receive(hello(**DRAFTER, vocabulary=theirs)) is HandshakeState.AGREED


@given(st.lists(messages), st.sampled_from(HandshakeState))
def test_any_messages_lead_to_a_state_or_raise_remote_error(
    messages: list[AnyMessage], start: HandshakeState
) -> None:
    handshake = Handshake(OURS, WORDS)
    handshake.state = start if start is not HandshakeState.REFUSING else HandshakeState.GREETING
    for message in messages:
        was = handshake.state
        try:
            assert handshake.receive(message) is handshake.state
        except RemoteProtocolError:
            assert handshake.state is was
        if (
            handshake.state in (HandshakeState.REFUSING, HandshakeState.CLOSED)
            and was is not handshake.state
        ):
            assert handshake.ending is not None
        if was is HandshakeState.CLOSED:
            assert handshake.state is HandshakeState.CLOSED


def test_reason_of_a_peer_cannot_forge_log_lines() -> None:
    handshake = Handshake(OURS, ANY_VOCABULARY)
    assert handshake.receive(Refuse("go\naway\x1b[2J")) is HandshakeState.CLOSED
    assert isinstance(handshake.ending, PeerRefused)
    assert str(handshake.ending) == "the peer refused: go?away?[2J"
    assert printable("plain ä") == "plain ä"
