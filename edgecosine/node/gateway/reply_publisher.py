"""Sends states, stream parts and finals, each only after its journal records are durable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from edgecosine.counters import Counters
from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.node.durability.interface import FinishedRecord, Journal
from edgecosine.node.gateway.reply_sink import ReplySink
from edgecosine.node.gateway.request_table import FinishedRequest, RequestTable
from edgecosine.node.runtime.clock import loop_time
from edgecosine.node.runtime.failures import NOT_TAKEN
from edgecosine.protocol.api.answers import StreamPart
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.origins import Origins, joined
from edgecosine.protocol.api.replies import FinalReply, RequestEnd, undeliverable
from edgecosine.protocol.api.request_record import RequestRecord, RequestStatus, TextPlace
from edgecosine.protocol.api.result import Delta

_ACTIVE: frozenset[RequestStatus] = frozenset(("accepted", "queued", "running"))


class ReplyPublisher:
    """Sends the replies of one target, and keeps each final until it is delivered."""

    def __init__(
        self,
        sink: ReplySink,
        *,
        table: RequestTable,
        journal: Journal,
        queue: RequestQueue,
        keep_answers_s: float,
        counters: Counters,
    ) -> None:
        self._sink, self._table, self._journal, self._queue = sink, table, journal, queue
        self._keep_answers_s, self._counters = keep_answers_s, counters
        self.stall: str | None = None
        """Why active requests make no progress now."""
        self._unwritten: dict[str, RequestEnd] = {}
        """Ends of requests that wait for the journal, by request key."""
        self._undelivered: dict[FinalReply, str] = {}
        """Finals that were sent, and their request keys."""

    def __repr__(self) -> str:
        return f"<ReplyPublisher [{len(self._undelivered)} finals undelivered]>"

    @property
    def max_body_bytes(self) -> int:
        """Longest body of a final reply."""
        return self._sink.max_body_bytes

    def send_state(self, record: RequestRecord) -> None:
        """Send a request's state; an end follows its journal record."""
        is_active = record.state in _ACTIVE
        stall = self.stall if is_active else None
        send = partial(self._sink.send_state, record.ticket, record.state, stall)
        if is_active:
            self._journal.then(send)
        else:
            self._journal.once_kept(partial(self._journal.then, send))

    def send_part(self, record: RequestRecord, choice: int, delta: Delta) -> None:
        """Append text to a channel of one choice and send it to a reader of the stream."""
        if record.ticket.wants_stream:
            place, origins = (choice, delta.channel), delta.origins
            before = record.texts.get(place, "")
            record.texts[place] = before + delta.text
            if origins:
                record.origins[place] = joined((*record.origins.get(place, ()), *origins))
            self._send_parts(record, _part(record, place, len(before), delta.text, origins))

    def resend_parts(self, record: RequestRecord) -> None:
        """Send all text so far again, since parts may be lost with a client's connection."""
        self._send_parts(record, *_texts(record))

    def send_last_part(self, record: RequestRecord) -> None:
        """End a stream."""
        self._send_parts(record, _last_part(record))

    def whole_stream(self, record: RequestRecord) -> tuple[Outgoing, ...]:
        """Return the whole stream for the journal; empty if no stream was requested."""
        if not record.ticket.wants_stream:
            return ()
        return self._sink.render_parts(record.ticket, (*_texts(record), _last_part(record)))

    def send_stream(self, parts: Sequence[Outgoing]) -> None:
        """Send a stream that the journal kept."""
        self._journal.then(partial(self._sink.send_parts, parts))

    def send_refusal(self, final: FinalReply) -> None:
        """Send a final that is not journalled."""
        self._journal.then(partial(self._sink.send_final, final))

    def repeat_final(self, final: FinalReply) -> None:
        """Send a final again that a client requested again."""
        self._journal.once_kept(partial(self.send_refusal, final))

    def send_final(self, key: str, end: RequestEnd) -> None:
        """Send a final once it is journalled, after a restart again, until it is delivered."""
        self._unwritten[key] = end
        self._journal.once_kept(partial(self._on_written, key))

    def drop_final(self, key: str) -> None:
        """Do not send a final: another target does."""
        self._unwritten.pop(key, None)

    def delivered(self, final: FinalReply) -> None:
        """Record that a final was delivered."""
        if (key := self._undelivered.pop(final, None)) is not None:
            self._settle(key)

    def undeliverable(self, final: FinalReply) -> None:
        """Replace a final that the transport refuses by an error that says so."""
        key, error = self._undelivered.pop(final, None), undeliverable(final, NOT_TAKEN)
        if key is not None and error is not None:
            self._counters.count("failed", NOT_TAKEN.code)
            if (known := self._table.finished(key)) is not None:
                self._keep(key, replace(known, state="failed", final=error))
            self.send_final(key, RequestEnd("failed", error))
        elif key is not None:
            self._settle(key)
        elif error is not None:
            self.send_refusal(error)

    def _settle(self, key: str) -> None:
        """Record that nothing of a request is left to deliver."""
        self._journal.deliver(key)
        self._queue.finish(key)

    def _keep(self, key: str, finished: FinishedRequest) -> None:
        """Keep another final of a request, also in the journal."""
        self._table.keep(key, finished)
        left_s = min(self._keep_answers_s, max(0.0, finished.until - loop_time()))
        kept_until = self._journal.wall_s() + left_s
        self._journal.finish(
            FinishedRecord(key, finished.digest, finished.state, finished.final, kept_until)
        )

    def _on_written(self, key: str) -> None:
        if (end := self._unwritten.pop(key, None)) is not None:
            self._queue.when_owned(key, end, partial(self._send_owned, key, end.final))

    def _send_owned(self, key: str, final: FinalReply) -> None:
        self._undelivered[final] = key
        self._journal.then(partial(self._sink.send_final, final))

    def _send_parts(self, record: RequestRecord, *parts: StreamPart) -> None:
        self.send_stream(self._sink.render_parts(record.ticket, parts))


def _part(
    record: RequestRecord, place: TextPlace, index: int, text: str, origins: Origins
) -> StreamPart:
    choice, channel = place
    number = choice if record.request.n > 1 else None
    return StreamPart(index, text, False, number, channel, origins, record.usage)


def _texts(record: RequestRecord) -> list[StreamPart]:
    return [
        _part(record, place, 0, text, record.origins.get(place, ()))
        for place, text in record.texts.items()
    ]


def _last_part(record: RequestRecord) -> StreamPart:
    return StreamPart(sum(map(len, record.texts.values())), "", is_last=True)
