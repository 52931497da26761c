"""The gateway's replies to a request: states, stream parts, one final; and their MQTT form.

The journal keeps a final in its MQTT form, so both conversions must stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from edgecosine.errors import Refusal, RequestError
from edgecosine.protocol.api.answers import StreamPart, render_error, render_final, render_piece
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestStatus, RequestTicket
from edgecosine.protocol.api.result import Answer
from edgecosine.protocol.api.topics import Topics

_OK: Final = "200"


@dataclass(frozen=True, slots=True)
class FinalReply:
    """The one final reply to a request, as any transport can deliver it."""

    request_id: str
    reply_topic: str
    """Where the client expects it."""
    body: bytes
    status: str = _OK
    """An HTTP status code."""
    content_type: str | None = JSON_TYPE
    correlation: bytes | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes; the client chooses the length of topic and correlation data."""
        return len(self.body) + len(self.correlation or b"") + len(self.reply_topic)


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """The end of a request: its final reply, and the whole stream where one was requested."""

    state: RequestStatus
    final: FinalReply
    parts: tuple[Outgoing, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.final.num_bytes + sum(part.num_bytes for part in self.parts)


def answer_reply(
    ticket: RequestTicket, request: Request, answer: Answer, *, created_s: int
) -> FinalReply:
    """Return the final reply with an answer: bare text where bare text was requested, else JSON."""
    if ticket.kind == "ask":
        return _final(ticket, answer.text.encode(), _OK, TEXT_TYPE)
    return _final(ticket, render_final(request, answer, created_s=created_s), _OK, JSON_TYPE)


def error_reply(ticket: RequestTicket, error: RequestError | Refusal) -> FinalReply:
    """Return the final reply to a request that failed or was refused."""
    body = render_error(error, ticket.request_id)
    return _final(ticket, body, str(error.status), JSON_TYPE)


def undeliverable(final: FinalReply, error: RequestError | Refusal) -> FinalReply | None:
    """Return the error that replaces a final reply which the transport refuses.

    None if that reply is an error itself: no shorter one exists.
    """
    if final.status != _OK:
        return None
    return replace(
        final,
        body=render_error(error, final.request_id),
        content_type=JSON_TYPE,
        status=str(error.status),
    )


def final_message(final: FinalReply) -> Outgoing:
    """Return the publication of a final reply."""
    return Outgoing(
        topic=final.reply_topic,
        payload=final.body,
        correlation=final.correlation,
        content_type=final.content_type,
        user=(("status", final.status), ("id", final.request_id)),
    )


def read_final(message: Outgoing) -> FinalReply | None:
    """Return the final reply that was published, or None for any other publication."""
    facts = dict(message.user)
    if "status" not in facts:
        return None
    return FinalReply(
        request_id=facts.get("id", ""),
        reply_topic=message.topic,
        body=message.payload,
        status=facts["status"],
        content_type=message.content_type,
        correlation=message.correlation,
    )


def state_message(
    topics: Topics, ticket: RequestTicket, state: RequestStatus, stall: str | None = None
) -> Outgoing:
    """Return the publication of a request's state. The body names the client, as the topic cannot.

    `stall` is the reason why active requests make no progress now.
    """
    body = {"id": ticket.request_id, "client": ticket.client_id, "state": state}
    if stall is not None:
        body["stall"] = stall
    return Outgoing(
        topic=topics.job_state(ticket.request_id),
        payload=msgspec.json.encode(body),
        content_type=JSON_TYPE,
    )


def piece_message(topics: Topics, ticket: RequestTicket, piece: StreamPart) -> Outgoing:
    """Return the publication of a stream part.

    Only the last part needs QoS 1: the final reply has all text.
    """
    return Outgoing(
        topic=topics.stream(ticket.client_id, ticket.request_id),
        payload=render_piece(piece),
        qos=1 if piece.is_last else 0,
        correlation=ticket.correlation,
    )


def _final(ticket: RequestTicket, body: bytes, status: str, content_type: str) -> FinalReply:
    return FinalReply(
        request_id=ticket.request_id,
        reply_topic=ticket.reply_topic,
        body=body,
        status=status,
        content_type=content_type,
        correlation=ticket.correlation,
    )
