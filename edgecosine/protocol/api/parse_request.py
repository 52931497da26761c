"""Parses a publication on a request topic into a request or a refusal. Pure.

Three values are found first, so that a refusal can be delivered too: the client id (user property
`client`, else the body's `client`, else the client of the MQTT 5 Response Topic, else "anon"), the
request id (the body's `id`, else the correlation data where it is an identifier, else a drawn id)
and the reply topic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgecosine.errors import Refusal, RequestError
from edgecosine.protocol.api.json_fields import read_names, read_object, read_text
from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.openai import (
    RequestLimits,
    ask_request,
    check_identifier,
    parse_request,
)
from edgecosine.protocol.api.request import Request, RequestKind
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.topics import ResponseTopic, Topics, is_identifier

ANONYMOUS = "anon"


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """An invalid request; `ticket` is where the error goes."""

    ticket: RequestTicket
    error: Refusal
    cause: Exception | None = None
    """An unexpected exception, for the log."""


UNREAD = Refusal("the cluster failed to read this request", code="internal_error", status=500)


class RequestParser:
    """Parses requests to one cluster; `draw_id` and `draw_seed` supply missing values."""

    def __init__(
        self,
        topics: Topics,
        *,
        max_request_bytes: int,
        draw_id: Callable[[], str],
        draw_seed: Callable[[], int],
    ) -> None:
        self._topics = topics
        self.max_request_bytes = max_request_bytes
        self._draw_id = draw_id
        self._draw_seed = draw_seed

    def read(
        self, kind: RequestKind, message: Incoming, limits: RequestLimits
    ) -> RequestRecord | RefusedRequest:
        """Parse a publication; a fault is returned as a refusal."""
        num_bytes = len(message.payload)
        if num_bytes > self.max_request_bytes:
            return self.refuse(kind, message, too_large(num_bytes, self.max_request_bytes))
        body: Mapping[str, object] = {}
        text = ""
        fault: Refusal | None = None
        cause: Exception | None = None
        try:
            if kind == "ask":
                text = read_text(message.payload)
            else:
                body = read_object(message.payload)
        except RequestError as error:
            fault = error.refusal
        except Exception as error:  # noqa: BLE001 -- the client gets an error, other requests go on
            fault, cause = UNREAD, error
        ticket = self._ticket(kind, body, message)
        try:
            ticket = self._with_reply(ticket, message.response_topic or body.get("reply_to"))
            if fault is not None:
                return RefusedRequest(ticket, fault, cause)
            request = self._request(ticket, body, text, limits)
        except RequestError as error:
            return RefusedRequest(ticket, error.refusal)
        except Exception as error:  # noqa: BLE001 -- as above
            return RefusedRequest(ticket, UNREAD, error)
        ticket = replace(ticket, digest=_digest(kind, message.payload))
        expiry_s = math.inf if message.expiry_s is None else message.expiry_s
        request = replace(request, deadline_s=min(request.deadline_s, expiry_s))
        return RequestRecord(replace(ticket, wants_stream=request.stream), request)

    def refuse(self, kind: RequestKind, message: Incoming, fault: Refusal) -> RefusedRequest:
        """Refuse a publication; only its client, id and reply topic are parsed."""
        body = {} if kind == "ask" else read_names(message.payload)
        ticket = self._ticket(kind, body, message)
        try:
            ticket = self._with_reply(ticket, message.response_topic or body.get("reply_to"))
        except RequestError as error:
            fault = error.refusal
        return RefusedRequest(ticket, fault)

    def _ticket(
        self, kind: RequestKind, body: Mapping[str, object], message: Incoming
    ) -> RequestTicket:
        client_id = message.client if message.client and is_identifier(message.client) else None
        client_id = client_id or _lenient("client", body)
        client_id = client_id or self._addressed(message.response_topic) or ANONYMOUS
        name = _lenient("id", body) or _as_identifier(message.correlation)
        request_id = name or self._draw_id()
        return RequestTicket(
            client_id=client_id,
            request_id=request_id,
            kind=kind,
            reply_topic=self._topics.response(client_id, request_id),
            correlation=message.correlation,
            is_named=name is not None,
        )

    def _addressed(self, response_topic: str | None) -> str | None:
        """The client in an MQTT 5 Response Topic; None if there is none."""
        match self._topics.parse(response_topic or ""):
            case ResponseTopic(client_id):
                return client_id
        return None

    def _with_reply(self, ticket: RequestTicket, topic: object) -> RequestTicket:
        if topic is None:
            return ticket
        if not isinstance(topic, str):
            raise RequestError(
                "reply_to is not a string", code="invalid_type", parameter="reply_to"
            )
        self._topics.check_reply(topic)
        own = self._topics.response(ticket.client_id, "")
        if not topic.startswith(own) or topic == own:
            # Otherwise a client could make the cluster send answers to another client.
            raise RequestError(
                f"the replies to this client go below {own}",
                code="reply_topic_refused",
                parameter="reply_to",
                status=403,
            )
        return replace(ticket, reply_topic=topic)

    def _request(
        self, ticket: RequestTicket, body: Mapping[str, object], text: str, limits: RequestLimits
    ) -> Request:
        if ticket.kind == "ask":
            return ask_request(
                text,
                client_id=ticket.client_id,
                request_id=ticket.request_id,
                limits=limits,
                seed=self._draw_seed(),
            )
        return parse_request(
            ticket.kind,
            body,
            client_id=ticket.client_id,
            request_id=ticket.request_id,
            limits=limits,
            draw_seed=self._draw_seed,
        )


def too_large(num_bytes: int, limit: int) -> Refusal:
    """The refusal of a request over the size limit."""
    return Refusal(
        f"the request has {num_bytes} bytes; the cluster takes at most {limit}",
        code="request_too_large",
        status=413,
    )


def _digest(kind: RequestKind, payload: bytes) -> bytes:
    return hashlib.blake2b(kind.encode() + b"\0" + payload, digest_size=16).digest()


def _lenient(name: str, body: Mapping[str, object]) -> str | None:
    """An identifier of the body; None when it is invalid, which `parse_request` refuses later."""
    try:
        return check_identifier(name, body.get(name))
    except RequestError:
        return None


def _as_identifier(correlation: bytes | None) -> str | None:
    text = (correlation or b"").decode("ascii", "replace")
    return text if is_identifier(text) else None
