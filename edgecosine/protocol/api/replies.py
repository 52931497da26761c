"""The gateway's publications about a request: its states, stream parts and final message."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import msgspec

from edgecosine.errors import Refusal, RequestError
from edgecosine.protocol.api.answers import StreamPart, render_error, render_final, render_piece
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.api.parse_request import ReplyAddress
from edgecosine.protocol.api.request import Answer, Request
from edgecosine.protocol.api.topics import Topics

RequestStatus = Literal["accepted", "queued", "running", "done", "failed", "cancelled", "expired"]

_OK = "200"


def state_message(
    topics: Topics, ticket: ReplyAddress, state: RequestStatus, stall: str | None = None
) -> Outgoing:
    """The state of a request; the body has the client id, which the topic lacks.

    `stall` is the reason why the request does not progress now.
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
    """A part of a streamed answer, QoS 0 but for the last: the final message has all text."""
    return Outgoing(
        topic=topics.stream(ticket.client_id, ticket.request_id),
        payload=render_piece(piece),
        qos=1 if piece.is_last else 0,
        correlation=ticket.correlation,
    )


def answer_message(
    ticket: ReplyAddress, request: Request, answer: Answer, *, created_s: int
) -> Outgoing:
    """The final message of an answered request: plain text for a plain prompt, otherwise JSON."""
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
    """The error to send in place of a final message that the broker refuses.

    None for other messages, and for a final message that is an error itself.
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
    """The final message of a failed request."""
    return Outgoing(
        topic=ticket.reply_topic,
        payload=render_error(error, ticket.request_id),
        correlation=ticket.correlation,
        content_type=JSON_TYPE,
        user=(("status", str(error.status)), ("id", ticket.request_id)),
    )
