"""What the gateway publishes about one request: its states, its parts and its final message."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edgecosine.errors import Refusal, RequestError
from edgecosine.protocol.api.answers import StreamPart, render_error, render_final, render_piece
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.api.request import Answer, Request
from edgecosine.protocol.api.request_record import ReplyAddress, RequestStatus
from edgecosine.protocol.api.topics import Topics

_OK = "200"


def state_message(
    topics: Topics, ticket: ReplyAddress, state: RequestStatus, stall: str | None = None
) -> Outgoing:
    """Where a request stands; the topic names only the request, so the body names its asker.

    `stall` is why it does not move now.
    """
    body = {"id": ticket.request_id, "client": ticket.client_id, "state": state}
    if stall is not None:
        body["stall"] = stall
    return Outgoing(
        topic=topics.job_state(ticket.request_id),
        payload=msgspec.json.encode(body),
        content_type=JSON_TYPE,
    )


def piece_message(topics: Topics, ticket: ReplyAddress, piece: StreamPart) -> Outgoing:
    """A part of a streamed answer. Only the last must arrive: the final message has all text."""
    return Outgoing(
        topic=topics.stream(ticket.client_id, ticket.request_id),
        payload=render_piece(piece),
        qos=1 if piece.is_last else 0,
        correlation=ticket.correlation,
    )


def answer_message(
    ticket: ReplyAddress, request: Request, answer: Answer, *, created_s: int
) -> Outgoing:
    """The one final message of a request that was answered: bare text where bare text was asked."""
    is_bare = ticket.kind == "ask"
    payload = (
        answer.text.encode() if is_bare else render_final(request, answer, created_s=created_s)
    )
    return Outgoing(
        topic=ticket.reply_topic,
        payload=payload,
        correlation=ticket.correlation,
        content_type=TEXT_TYPE if is_bare else JSON_TYPE,
        user=(("status", _OK), ("id", ticket.request_id)),
    )


def undeliverable(final: Outgoing, error: RequestError | Refusal) -> Outgoing | None:
    """What to say in place of a final message that no broker takes.

    None for what is no final message, or is an error itself: there is nothing shorter to say.
    """
    facts = dict(final.user)
    if facts.get("status") != _OK:
        return None
    return replace(
        final,
        payload=render_error(error, facts["id"]),
        content_type=JSON_TYPE,
        user=(("status", str(error.status)), ("id", facts["id"])),
    )


def error_message(ticket: ReplyAddress, error: RequestError | Refusal) -> Outgoing:
    """The one final message of a request that was not answered."""
    return Outgoing(
        topic=ticket.reply_topic,
        payload=render_error(error, ticket.request_id),
        correlation=ticket.correlation,
        content_type=JSON_TYPE,
        user=(("status", str(error.status)), ("id", ticket.request_id)),
    )
