"""Encodes and decodes messages, without regard to sockets or message order.

Bytes from a peer are decoded into a typed frozen message, whose types bound every length, so that
nothing is made of what a message does not have; then relations between its fields are checked. Any
bytes give a message or a RemoteProtocolError.
"""

from __future__ import annotations

import operator
from typing import Final, NoReturn

import msgspec

from edgecosine.errors import LocalProtocolError, RemoteProtocolError
from edgecosine.protocol.wire.messages import (
    VOCABULARY_DIGEST_BYTES,
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Judgement,
    JudgeRequest,
    Reveal,
)

TOKEN_BYTES: Final = 4
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(AnyMessage)


def tag_of(message: AnyMessage) -> str:
    """The message's tag on the wire."""
    return str(message.__struct_config__.tag)


def encode(message: AnyMessage) -> bytes:
    """The message as msgpack.

    Raises LocalProtocolError when a value cannot be encoded.
    """
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send this {tag_of(message)}: {error}") from error


def decode(payload: bytes) -> AnyMessage:
    """Decode the payload of one frame.

    Raises RemoteProtocolError, and no other error, when the bytes are no valid message.
    """
    try:
        message: AnyMessage = _decoder.decode(payload)
    except msgspec.ValidationError as error:
        _refuse(f"an invalid message: {error}")
    except (ValueError, OverflowError, RecursionError) as error:
        _refuse(f"bytes that are not bounded msgpack ({str(error) or type(error).__name__})")
    _check(message)
    return message


def _check(message: AnyMessage) -> None:
    """Check relations between fields, which types cannot express."""
    if type(message) is Draft:
        _check_draft(message)
    elif type(message) is DraftRequest or type(message) is JudgeRequest:
        if len(message.new_tokens) % TOKEN_BYTES:
            _refuse("a request whose tokens are cut off")
        if len(message.new_tokens) > TOKEN_BYTES * message.prefix_len:
            _refuse("a request with more new tokens than its prefix is long")
        if type(message) is JudgeRequest and len(message.also) % TOKEN_BYTES:
            _refuse("a judge request whose tokens are cut off")
    elif type(message) is Reveal and len(message.ids) % TOKEN_BYTES:
        _refuse("a reveal request whose tokens are cut off")
    elif type(message) is Judgement:
        _check_judgement(message)
    elif type(message) is Hello and len(message.vocabulary) % VOCABULARY_DIGEST_BYTES:
        _refuse("a hello whose vocabulary digests are cut off")


def _check_draft(draft: Draft) -> None:
    num_tokens, cut = divmod(len(draft.tokens), TOKEN_BYTES)
    if cut:
        _refuse("a draft whose tokens are cut off")
    if len(draft.confidences) != num_tokens:
        _refuse("a draft without one confidence per token")
    if not draft.parents:
        return
    if len(draft.parents) != num_tokens:
        _refuse("a draft without one parent per token")
    if not all(map(operator.le, draft.parents, range(num_tokens))):
        _refuse("a draft with a token before its parent")


def _check_judgement(judgement: Judgement) -> None:
    num_nodes, cut = divmod(len(judgement.lse), TOKEN_BYTES)
    if cut or not num_nodes:
        _refuse("a judgement of no node")
    if len(judgement.logits) != len(judgement.ids) or len(judgement.ids) % len(judgement.lse):
        _refuse("a judgement without one logit per listed token")
    for bounds in (judgement.score_bounds, judgement.logit_bounds):
        if bounds and len(bounds) != len(judgement.lse):
            _refuse("a judgement without one bound per node")
    if len(judgement.also) % len(judgement.lse):
        _refuse("a judgement without the same tokens for each node")


def _refuse(what: str) -> NoReturn:
    raise RemoteProtocolError(f"the peer sent {what}")
