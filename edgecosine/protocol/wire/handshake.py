"""The order of messages on a link, and the compatibility check of two nodes. Pure.

Both sides send Hello at once. A node that accepts the other sends a Ping and answers the other's
Ping by a Pong. A received Pong therefore proves that both accept, and allows work messages. A node
that rejects the other sends Refuse and then only waits for the other's Refuse, whose block gives
the first token in which the vocabularies differ.

GREETING → AGREED → READY → CLOSED          GREETING → REFUSING → CLOSED

All transitions are in `_TABLE`; a message without an entry there is out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from edgecosine.errors import PeerMismatched, PeerRefused, RemoteProtocolError
from edgecosine.protocol.wire.codec import tag_of
from edgecosine.protocol.wire.messages import (
    MAX_REASON_CHARACTERS,
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Judgement,
    JudgeRequest,
    Leave,
    OutOfStep,
    Ping,
    Pong,
    Refuse,
    Release,
    Reveal,
    Role,
)
from edgecosine.protocol.wire.vocabulary import Vocabulary


class HandshakeState(Enum):
    """The state of a link's handshake; the value is used in error messages."""

    GREETING = "before the greeting"
    AGREED = "before the first pong"
    READY = "while ready"
    REFUSING = "after a refusal"
    CLOSED = "after the end"


_Kinds = frozenset[type[AnyMessage]]

_WORK: Final[Mapping[tuple[Role, Role], _Kinds]] = {
    ("target", "drafter"): frozenset({DraftRequest, Release}),
    ("drafter", "target"): frozenset({Draft, OutOfStep, Leave}),
    ("target", "member"): frozenset({JudgeRequest, Reveal, Release}),
    ("member", "target"): frozenset({Judgement, OutOfStep, Leave}),
}


def work_of(sender: Role, receiver: Role) -> _Kinds:
    """The work messages that one role sends to another; none for roles that do not link."""
    return _WORK.get((sender, receiver), frozenset())


def mismatch(ours: Hello, theirs: Hello) -> str | None:
    """Why two nodes cannot be linked, and what to do; None if they can.

    Vocabularies are compared by `vocabulary_refusal`.
    """
    if theirs.protocol != ours.protocol:
        return (
            f"protocol {theirs.protocol} there, {ours.protocol} here: "
            "install the same release on both nodes"
        )
    if theirs.cluster != ours.cluster:
        return (
            f"cluster {theirs.cluster} there, {ours.cluster} here: "
            "start both nodes with the same --cluster"
        )
    if theirs.node_id == ours.node_id:
        if theirs.incarnation == ours.incarnation:
            return "this is the node itself: leave its own address out of its peers"
        return (
            f"two nodes are called {ours.node_id}: "
            "give each its own name, and do not copy a node's identity to another machine"
        )
    if not work_of(ours.role, theirs.role):
        others = "drafters and members" if ours.role == "target" else "targets"
        both = f"both nodes are {ours.role}s" if theirs.role == ours.role else (
            f"{theirs.role} there, {ours.role} here"
        )  # fmt: skip
        return f"{both}: a {ours.role} links with {others} only"
    return None


def vocabulary_refusal(ours: Vocabulary, theirs: Hello) -> Refuse | None:
    """The refusal of a peer with another vocabulary; None if they match."""
    if not ours.digests or not theirs.vocabulary:
        return None
    index = ours.first_difference(theirs.vocabulary)
    if index is None:
        return None
    return Refuse(
        reason="the vocabularies differ: serve models with the same tokenizer",
        block_index=index,
        block=ours.block(index),
    )


def anybody(_: Hello) -> str | None:
    """Accept any peer without proof of identity."""
    return None


class Handshake:
    """The order of messages on one link, from the greeting to the end.

    state    the current state
    peer     the peer's Hello, once received
    sendable work messages that this node may send to the peer
    is_ready whether work may be sent and received
    refusal  our refusal, to be sent when the state becomes REFUSING
    ending   why the link ends, from REFUSING on

    `objection` returns why a peer's identity is not proven, None when it is.
    """

    def __init__(
        self,
        ours: Hello,
        vocabulary: Vocabulary,
        objection: Callable[[Hello], str | None] = anybody,
    ) -> None:
        self.state = HandshakeState.GREETING
        self.peer: Hello | None = None
        self.refusal: Refuse | None = None
        self.ending: PeerRefused | None = None
        self._ours, self._vocabulary = ours, vocabulary
        self._objection = objection
        self._work: _Kinds = frozenset()
        self.sendable: _Kinds = frozenset()
        self.is_ready = False

    def receive(self, message: AnyMessage) -> HandshakeState:
        """Handle the peer's next message; returns the new state.

        Raises RemoteProtocolError when the message is out of order.
        """
        kind = type(message)
        if self.is_ready and kind in self._work:
            return self.state
        rule = _TABLE[self.state].get(kind)
        if rule is None:
            raise RemoteProtocolError(f"the peer sent {tag_of(message)} {self.state.value}")
        self.state = rule(self, message)
        self.is_ready = self.state is HandshakeState.READY
        return self.state

    def _take_hello(self, hello: Hello) -> HandshakeState:
        self.peer = hello
        self._work = work_of(hello.role, self._ours.role)
        self.sendable = work_of(self._ours.role, hello.role)
        reason = self._objection(hello) or mismatch(self._ours, hello)
        if reason is not None:
            self.refusal = Refuse(reason[:MAX_REASON_CHARACTERS])
        else:
            self.refusal = vocabulary_refusal(self._vocabulary, hello)
        if self.refusal is None:
            return HandshakeState.AGREED
        self.ending = PeerMismatched(self.refusal.reason)
        return HandshakeState.REFUSING

    def _take_refuse(self, refuse: Refuse) -> HandshakeState:
        self.ending = PeerRefused(f"the peer refused: {printable(refuse.reason)}")
        return HandshakeState.CLOSED

    def _take_answer_to_refusal(self, refuse: Refuse) -> HandshakeState:
        if self.refusal is not None and 0 <= self.refusal.block_index == refuse.block_index:
            difference = self._vocabulary.difference(refuse.block_index, refuse.block)
            if difference is not None:
                self.ending = PeerMismatched(f"{self.refusal.reason} ({difference})")
        return HandshakeState.CLOSED

    def _agreed(self, _message: AnyMessage) -> HandshakeState:
        return HandshakeState.AGREED

    def _ready(self, _message: AnyMessage) -> HandshakeState:
        return HandshakeState.READY

    def _still_refusing(self, _message: AnyMessage) -> HandshakeState:
        return HandshakeState.REFUSING


def printable(text: str) -> str:
    """Untrusted text with unprintable characters replaced, for logs and terminals."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


_Rule = Callable[[Handshake, Any], HandshakeState]

_TABLE: Final[Mapping[HandshakeState, Mapping[type[AnyMessage], _Rule]]] = {
    HandshakeState.GREETING: {Hello: Handshake._take_hello, Refuse: Handshake._take_refuse},
    HandshakeState.AGREED: {
        Ping: Handshake._agreed,
        Pong: Handshake._ready,
        Refuse: Handshake._take_refuse,
    },
    HandshakeState.READY: {
        Ping: Handshake._ready,
        Pong: Handshake._ready,
        Refuse: Handshake._take_refuse,
    },
    HandshakeState.REFUSING: {
        Refuse: Handshake._take_answer_to_refusal,
        Ping: Handshake._still_refusing,
        Pong: Handshake._still_refusing,
        **dict.fromkeys(frozenset().union(*_WORK.values()), Handshake._still_refusing),
    },
    HandshakeState.CLOSED: {},
}
