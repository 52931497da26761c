"""Requests that come over HTTP: admitted like those of MQTT, answered on their connection."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgecosine.client.active_requests import ActiveRequest
from edgecosine.errors import Refusal, RequestError
from edgecosine.http.backend import Accepted, Call, Step, Tokenizer
from edgecosine.node.gateway.reply_sink import ReplySink
from edgecosine.node.gateway.request_manager import RequestManager
from edgecosine.node.gateway.service import Service
from edgecosine.protocol.api.answers import StreamPart, parse_final, parse_piece, render_piece
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.replies import FinalReply
from edgecosine.protocol.api.request_record import (
    RequestRecord,
    RequestStatus,
    RequestTicket,
    is_local,
)


class Reader(ActiveRequest):
    """One connection that waits for the answer to a request."""

    is_accepted = False


class LocalReplySink:
    """Passes replies to the readers of their request in this process; implements `ReplySink`.

    The reply topic of a request over HTTP is its key. A reply without a reader is dropped: a client
    that repeats its request gets the final from the request table.
    """

    max_body_bytes = MAX_PAYLOAD_BYTES

    def __init__(self, on_delivered: Callable[[FinalReply], None]) -> None:
        self._on_delivered = on_delivered
        self._readers: defaultdict[str, list[Reader]] = defaultdict(list)

    def __repr__(self) -> str:
        return f"<LocalReplySink [{len(self._readers)} requests]>"

    @contextlib.contextmanager
    def reading(self, key: str, reader: Reader) -> Iterator[None]:
        """Pass the replies to the request `key` to `reader` within the block."""
        self._readers[key].append(reader)
        try:
            yield
        finally:
            self._readers[key].remove(reader)
            if not self._readers[key]:
                del self._readers[key]

    def has_reader(self, key: str) -> bool:
        """Whether a connection waits for the answer to a request."""
        return key in self._readers

    def send_state(
        self, ticket: RequestTicket, state: RequestStatus, stall: str | None = None
    ) -> None:
        for reader in self._readers.get(ticket.key, ()):
            reader.is_accepted = True
            reader.wake()

    def render_parts(
        self, ticket: RequestTicket, parts: Iterable[StreamPart]
    ) -> tuple[Outgoing, ...]:
        return tuple(Outgoing(ticket.reply_topic, render_piece(part)) for part in parts)

    def send_parts(self, parts: Sequence[Outgoing]) -> None:
        for part in parts:
            for reader in self._readers.get(part.topic, ()):
                reader.take_piece(parse_piece(part.payload))

    def send_final(self, final: FinalReply) -> None:
        for reader in self._readers.get(final.reply_topic, ()):
            try:
                reader.finish(parse_final(final.body))
            except RequestError as error:
                reader.fail(error)
        self._on_delivered(final)


class RoutedReplySink:
    """Passes each reply to the sink of its transport; implements `ReplySink`."""

    def __init__(self, mqtt: ReplySink, local: ReplySink) -> None:
        self._mqtt, self._local = mqtt, local
        self.max_body_bytes = min(mqtt.max_body_bytes, local.max_body_bytes)

    def _of(self, topic: str) -> ReplySink:
        return self._local if is_local(topic) else self._mqtt

    def send_state(
        self, ticket: RequestTicket, state: RequestStatus, stall: str | None = None
    ) -> None:
        self._of(ticket.key).send_state(ticket, state, stall)

    def render_parts(
        self, ticket: RequestTicket, parts: Iterable[StreamPart]
    ) -> tuple[Outgoing, ...]:
        return self._of(ticket.key).render_parts(ticket, parts)

    def send_parts(self, parts: Sequence[Outgoing]) -> None:
        if parts:
            self._of(parts[0].topic).send_parts(parts)

    def send_final(self, final: FinalReply) -> None:
        self._of(final.reply_topic).send_final(final)


class LocalRequests:
    """Passes requests to the target's own request manager; implements `Backend` of the frontend."""

    def __init__(self, service: Service, manager: RequestManager, sink: LocalReplySink) -> None:
        self._service, self._manager, self._sink = service, manager, sink

    @property
    def info(self) -> Mapping[str, Any]:
        """The cluster's info."""
        return self._service.info

    @property
    def objection(self) -> Refusal | None:
        """Why new requests are refused now; None if they are taken."""
        return self._manager.objection

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer."""
        return self._service.tokenizer

    async def ask(self, call: Call) -> AsyncGenerator[Step, None]:
        """Yield the steps of a request; closing the generator early cancels it, unless another
        connection waits for its answer too.

        Raises RequestError.
        """
        request, reader = call.request, Reader(call.request)
        ticket = RequestTicket(
            client_id=request.client_id,
            request_id=request.request_id,
            kind=request.kind,
            reply_topic=f"{request.client_id}/{request.request_id}",
            wants_stream=request.stream,
            digest=call.digest,
            is_named=call.is_named,
        )
        try:
            with self._sink.reading(ticket.key, reader):
                # A request that a lost connection cancelled is run again for its repetition.
                self._manager.forget_cancelled(ticket.key)
                self._manager.accept(RequestRecord(ticket, request))
                async for step in _steps(reader):
                    yield step
        finally:
            if not (reader.is_over or self._sink.has_reader(ticket.key)):
                self._manager.cancel(ticket.request_id, ticket.client_id)


async def _steps(reader: Reader) -> AsyncGenerator[Step, None]:
    has_reported = False
    while not reader.is_over:
        if reader.is_accepted and not has_reported:
            has_reported = True
            yield Accepted()
        elif (delta := reader.take()) is not None:
            yield delta
        else:
            await reader.changed()
    yield reader.result()
