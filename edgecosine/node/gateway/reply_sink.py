"""Where replies go: the interface of a transport, and MQTT as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from edgecosine.protocol.api.answers import StreamPart
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.replies import (
    FinalReply,
    final_message,
    piece_message,
    state_message,
)
from edgecosine.protocol.api.request_record import RequestStatus, RequestTicket
from edgecosine.protocol.api.topics import Topics


class ReplySink(Protocol):
    """Delivers replies without waiting.

    The transport reports the delivery of each final to `RequestManager.delivered`, or its failure
    to `ReplyPublisher.undeliverable`.
    """

    max_body_bytes: int
    """Longest body of a final reply."""

    def send_state(
        self, ticket: RequestTicket, state: RequestStatus, stall: str | None = None
    ) -> None:
        """Send a request's state."""

    def render_parts(
        self, ticket: RequestTicket, parts: Iterable[StreamPart]
    ) -> tuple[Outgoing, ...]:
        """Return parts of a stream in the form that the journal keeps.

        A part that is too long is left out, since the final has its text.
        """

    def send_parts(self, parts: Sequence[Outgoing]) -> None:
        """Send rendered parts of a stream."""

    def send_final(self, final: FinalReply) -> None:
        """Send a final reply until it is delivered."""


class MqttReplySink:
    """Renders replies as publications and passes them to `publish`."""

    max_body_bytes = MAX_PAYLOAD_BYTES

    def __init__(self, topics: Topics, publish: Callable[[Outgoing], None]) -> None:
        self._topics, self._publish = topics, publish

    def send_state(
        self, ticket: RequestTicket, state: RequestStatus, stall: str | None = None
    ) -> None:
        self._publish(state_message(self._topics, ticket, state, stall))

    def render_parts(
        self, ticket: RequestTicket, parts: Iterable[StreamPart]
    ) -> tuple[Outgoing, ...]:
        messages = (piece_message(self._topics, ticket, part) for part in parts)
        return tuple(message for message in messages if len(message.payload) <= MAX_PAYLOAD_BYTES)

    def send_parts(self, parts: Sequence[Outgoing]) -> None:
        for message in parts:
            self._publish(message)

    def send_final(self, final: FinalReply) -> None:
        self._publish(final_message(final))
