"""Admits requests, and answers repeated ones.

It knows no transport: requests come by `accept`, replies go to a `ReplySink`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final, NoReturn

from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.errors import JournalUnavailable, Refusal, RequestError
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.node.durability.interface import KEEP_ANSWERS_S, Journal
from edgecosine.node.durability.recovery import NOTHING_RECOVERED, RecoveredState
from edgecosine.node.gateway.former_requests import FormerRequests, age_s, is_lost_with_process
from edgecosine.node.gateway.refusals import Refusals
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.reply_sink import ReplySink
from edgecosine.node.gateway.request_runner import RequestRunner
from edgecosine.node.gateway.request_table import FinishedRequest, RequestTable
from edgecosine.node.gateway.service import Service, model_of, validate
from edgecosine.node.gateway.session_slots import SessionSlots
from edgecosine.node.runtime.clock import loop_time
from edgecosine.node.runtime.failures import (
    DRAINING,
    DUPLICATE,
    JOURNAL_RETRY_S,
    LEAVING,
    fault_of,
    unavailable,
)
from edgecosine.protocol.api.choices import choices_of
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.mqtt_message import nothing
from edgecosine.protocol.api.replies import FinalReply, RequestEnd, error_reply
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket

logger = logging.getLogger(__name__)

_MAX_CANCELLED: Final = 256


class RequestManager:
    """Takes requests while it `run`s. When that is cancelled, active requests are left to the next
    process if there is a journal, and fail otherwise."""

    def __init__(
        self,
        service: Service,
        sink: ReplySink,
        *,
        admission: AdmissionControl,
        journal: Journal,
        queue: RequestQueue,
        counters: Counters,
        recovered: RecoveredState = NOTHING_RECOVERED,
        keep_answers_s: float = KEEP_ANSWERS_S,
        measurements: Measurements | None = None,
    ) -> None:
        self._service, self._journal, self._queue = service, journal, queue
        self._counters, self._keep_answers_s = counters, keep_answers_s
        self._recovered_state = recovered
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        """Requests that are not active here, and are cancelled if they become so."""
        self._objection: Refusal | None = None
        """Why new requests are refused."""
        self.table = RequestTable(keep_s=keep_answers_s)
        self._slots = SessionSlots(admission)
        self.publisher = ReplyPublisher(
            sink,
            table=self.table,
            journal=journal,
            queue=queue,
            keep_answers_s=keep_answers_s,
            counters=counters,
        )
        self.refusals = Refusals(self.publisher, counters)
        self.runner = RequestRunner(
            service,
            table=self.table,
            slots=self._slots,
            publisher=self.publisher,
            journal=journal,
            keep_answers_s=keep_answers_s,
            counters=counters,
            measurements=measurements or Measurements(),
        )
        self._former = FormerRequests(
            service,
            table=self.table,
            runner=self.runner,
            publisher=self.publisher,
            journal=journal,
            queue=queue,
            keep_answers_s=keep_answers_s,
            counters=counters,
            guarded=self._guarded,
        )

    def __repr__(self) -> str:
        return f"<RequestManager {self.table!r} {self._slots!r}>"

    async def run(self) -> NoReturn:
        """Admit requests until cancelled."""
        try:
            async with self.runner.open():
                state, self._recovered_state = self._recovered_state, NOTHING_RECOVERED
                self._former.resume(state)
                await asyncio.Event().wait()
        finally:
            is_handed_over = self._queue.has_ready_peer
            for record in self.table.active:
                if is_lost_with_process(record.ticket):
                    self.runner.fail(record, "failed", LEAVING)
                else:
                    self.runner.leave(record, is_handed_over=is_handed_over)
            await self._journal.settled()
        raise AssertionError("a request manager ends by an exception")

    def accept(self, record: RequestRecord, on_taken: Callable[[], None] = nothing) -> None:
        """Answer a request here, or leave it to another target.

        `on_taken` is called when the request need not be delivered again.
        """
        ticket, on_taken = record.ticket, partial(self._journal.then, on_taken)
        if not self._is_duplicate(ticket):
            self._cancelled.pop(ticket.key, None)
            with self._guarded(ticket):
                # An invalid request is neither claimed nor journalled nor queued. Room comes first,
                # since a flood must not cost a tokenizer run for each request.
                has_room = self._slots.has_room(choices_of(record.request))
                if has_room and self._queue.is_chosen(ticket):
                    validate(self._service, record)
                if not self._queue.claim(record, on_taken):
                    return
                self._admit(record)
        on_taken()

    def _is_duplicate(self, ticket: RequestTicket) -> bool:
        """Whether the key is known; then a repeated request is answered, another one refused."""
        try:
            known = self._recall(ticket)
            if known is None:
                return False
            self._repeat(ticket, known)
        except RequestError as error:
            self.refusals.send(ticket, error)
        except Exception as error:  # noqa: BLE001 -- only this request fails
            self.refusals.send(ticket, fault_of(error), error)
        return True

    def _recall(self, ticket: RequestTicket) -> RequestRecord | FinishedRequest | None:
        """Return the active or finished request of this key; None if it is new.

        Raises RequestError if the key belongs to another request.
        """
        if self._queue.has_other(ticket):
            raise DUPLICATE.error()
        return self.table.recall(ticket, loop_time())

    def _admit(self, record: RequestRecord) -> None:
        """Journal and start a new request of ours.

        Raises RequestError.
        """
        if not self.runner.is_open:
            raise DRAINING.error()
        if self._objection is not None:
            raise self._objection.error()
        self._slots.check(choices_of(record.request))
        if not record.is_valid:
            validate(self._service, record)
        self.runner.book(record)
        model = model_of(self._service)
        on_written = partial(self._on_journalled, record)
        self._journal.accept(record.ticket, record.request, model, on_written)

    def _on_journalled(self, record: RequestRecord, is_written: bool) -> None:
        with self._guarded(record.ticket):
            if record.is_elsewhere or record.is_final_sent:
                return
            if not is_written:
                self.runner.drop(record)
                self._journal.forget(record.key)
                self._refuse_claimed(record.ticket, JournalUnavailable(JOURNAL_RETRY_S))
                return
            if self.runner.is_open:
                self.publisher.send_state(record)
                self.runner.start(record)

    def _refuse_claimed(self, ticket: RequestTicket, error: RequestError) -> None:
        """Refuse a request, unless another target took it over while the journal was awaited."""

        def refuse() -> None:
            self._queue.withdraw(ticket)
            self.refusals.send(ticket, error)

        end = RequestEnd("failed", error_reply(ticket, error))
        self._queue.when_owned(ticket.key, end, refuse)

    @contextlib.contextmanager
    def _guarded(self, ticket: RequestTicket) -> Iterator[None]:
        """Confine an exception to the request: it ends the request if active, else refuses it."""
        try:
            yield
        except RequestError as error:
            self._queue.withdraw(ticket)
            self.refusals.send(ticket, error)
        except Exception as error:  # noqa: BLE001 -- only this request fails
            if (record := self.table.get(ticket.key)) is not None:
                self.runner.abort(record, error)
                return
            self._journal.forget(ticket.key)
            self._queue.withdraw(ticket)
            self.refusals.send(ticket, fault_of(error), error)

    def _repeat(self, ticket: RequestTicket, known: RequestRecord | FinishedRequest) -> None:
        """Answer a repeated request, which may come from a new connection, at its new address."""
        self._counters.count("repeated")
        if isinstance(known, FinishedRequest):
            if self._queue.is_held(ticket.key):
                return
            self._queue.repeat(ticket)
            final = replace(
                known.final, reply_topic=ticket.reply_topic, correlation=ticket.correlation
            )
            self.publisher.repeat_final(final)
            return
        if known.ticket != ticket:
            known.ticket = ticket
            self._journal.readdress(ticket)
        self.publisher.send_state(known)
        self.publisher.resend_parts(known)

    def start(self, claim: Claim) -> None:
        """Start a request that became ours after `claim` or `resume`."""
        if not self.runner.is_open and self._queue.has_ready_peer:
            return  # that target takes the request over as soon as we have left
        with self._guarded(claim.ticket):
            if not self._former.restart(claim):
                self._admit(RequestRecord(claim.ticket, claim.request, age_s=age_s(claim)))
        if claim.key in self._cancelled:
            del self._cancelled[claim.key]
            self.cancel(claim.ticket.request_id, claim.ticket.client_id)

    def abandon(self, key: str) -> None:
        """Drop a request that another target owns."""
        logger.info("request given up, another target has it: request=%s", key)
        self._former.forget(key)
        self.publisher.drop_final(key)
        if (record := self.table.forget(key)) is not None:
            self.runner.abandon(record)
        self._journal.forget(key)

    @property
    def objection(self) -> Refusal | None:
        """Why new requests are refused now; None if they are taken."""
        return self._objection if self.runner.is_open else DRAINING

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._objection = DRAINING

    def set_stall(self, reason: str | None) -> None:
        """Report in the states of active requests why they do not advance; None: they do."""
        self.publisher.stall = reason
        for record in self.table.active:
            self.publisher.send_state(record)

    def set_unavailable(self, reason: str | None) -> None:
        """Refuse new requests and report the reason in the states of active ones; None: accept."""
        self.set_stall(reason)
        if self._objection is not DRAINING:
            self._objection = None if reason is None else unavailable(reason)

    def cancel(self, request_id: str, client_id: str | None) -> None:
        """Cancel a request, now or when it becomes active here."""
        record = self.table.find(request_id, client_id)
        if record is not None:
            self.runner.cancel(record)
        elif client_id is not None:
            self._cancelled[f"{client_id}/{request_id}"] = None
            if len(self._cancelled) > _MAX_CANCELLED:
                self._cancelled.popitem(last=False)

    def forget_cancelled(self, key: str) -> None:
        """Forget a request that was cancelled, so that its repetition is a new request."""
        known = self.table.finished(key)
        if known is not None and known.state == "cancelled":
            self.table.forget(key)

    def cancel_all(self, client_id: str) -> None:
        """Cancel all active requests of a client."""
        for record in self.table.active:
            if record.ticket.client_id == client_id:
                self.runner.cancel(record)

    def delivered(self, final: FinalReply) -> None:
        """Record that a final was delivered."""
        self.refusals.delivered(final)
        self.publisher.delivered(final)
