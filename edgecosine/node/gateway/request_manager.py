"""Admits requests, answers repeated ones, and resumes what a former process or target left.

It knows no transport: requests come by `accept`, replies go to a `ReplySink`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
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
from edgecosine.node.durability.interface import KEEP_ANSWERS_S, FinishedRecord, Journal
from edgecosine.node.durability.recovery import DEADLY, NOTHING_RECOVERED, RecoveredState
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
from edgecosine.protocol.api.request_record import ReplyAddress, RequestRecord

logger = logging.getLogger(__name__)

MAX_TAKEN_OVER: Final = 3
"""A request that crashed more targets than this is not tried again."""
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
        self._recovered: dict[str, RequestRecord] = {}
        """Recovered requests that are not known to be ours yet."""
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

    def __repr__(self) -> str:
        return f"<RequestManager {self.table!r} {self._slots!r}>"

    async def run(self) -> NoReturn:
        """Admit requests until cancelled."""
        try:
            async with self.runner.open():
                self._resume()
                await asyncio.Event().wait()
        finally:
            is_handed_over = self._queue.has_ready_peer
            for record in self.table.active:
                if _is_lost_with_us(record.ticket):
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

    def _is_duplicate(self, ticket: ReplyAddress) -> bool:
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

    def _recall(self, ticket: ReplyAddress) -> RequestRecord | FinishedRequest | None:
        """Return what is known of a request; None if it is new.

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

    def _refuse_claimed(self, ticket: ReplyAddress, error: RequestError) -> None:
        """Refuse a request, unless another target took it over while the journal was awaited."""

        def refuse() -> None:
            self._queue.withdraw(ticket)
            self.refusals.send(ticket, error)

        end = RequestEnd("failed", error_reply(ticket, error))
        self._queue.when_owned(ticket.key, end, refuse)

    @contextlib.contextmanager
    def _guarded(self, ticket: ReplyAddress) -> Iterator[None]:
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

    def _repeat(self, ticket: ReplyAddress, known: RequestRecord | FinishedRequest) -> None:
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
            record = self._recovered.pop(claim.key, None)
            if claim.end is not None:
                self._end_as(claim, claim.end)
            elif record is not None:
                self.runner.book(record)
                self._go(record)
            elif claim.generation:
                self._take_over(claim)
            else:
                self._admit(RequestRecord(claim.ticket, claim.request, age_s=_age_s(claim)))
        if claim.key in self._cancelled:
            del self._cancelled[claim.key]
            self.cancel(claim.ticket.request_id, claim.ticket.client_id)

    def abandon(self, key: str) -> None:
        """Drop a request that another target owns."""
        logger.info("request given up, another target has it: request=%s", key)
        self._recovered.pop(key, None)
        self.publisher.drop_final(key)
        if (record := self.table.forget(key)) is not None:
            self.runner.abandon(record)
        self._journal.forget(key)

    def _take_over(self, claim: Claim) -> None:
        """Continue a request that another target accepted; its tokens are generated again."""
        logger.info("request taken over: request=%s from=%s", claim.key, claim.taken_from)
        record = RequestRecord(
            claim.ticket,
            claim.request,
            age_s=_age_s(claim),
            # The first target may have ended for any reason, the later ones because of the request.
            num_crashes=claim.generation - 1,
            fault=DEADLY if claim.generation > MAX_TAKEN_OVER else None,
        )
        self.runner.book(record)

        def go(_: bool) -> None:
            with self._guarded(claim.ticket):
                self._go(record)  # even if the journal refuses it

        self._journal.accept(claim.ticket, claim.request, model_of(self._service), go)

    def _end_as(self, claim: Claim, end: RequestEnd) -> None:
        """Send the final that the target of a former claim made, and may have sent."""
        logger.info("final taken over: request=%s from=%s", claim.key, claim.taken_from)
        ticket = claim.ticket
        kept_until = self._journal.wall_s() + self._keep_answers_s
        final = replace(end.final, reply_topic=ticket.reply_topic, correlation=ticket.correlation)
        kept = FinishedRecord(
            claim.key, ticket.digest, end.state, final, kept_until, parts=end.parts
        )
        self._journal.finish(kept)
        self._keep(kept)

    def _keep(self, kept: FinishedRecord) -> None:
        """Keep a final of a former process or target, and send it unless it was delivered."""
        left_s = min(kept.kept_until - self._journal.wall_s(), self._keep_answers_s)
        finished = FinishedRequest(kept.digest, kept.state, kept.final, loop_time() + left_s)
        self.table.keep(kept.key, finished)
        if not kept.is_delivered:
            self.publisher.send_stream(kept.parts)
            self.publisher.send_final(kept.key, RequestEnd(kept.state, kept.final, kept.parts))

    def _resume(self) -> None:
        """Send undelivered finals of a former process, and continue its requests."""
        state, self._recovered_state = self._recovered_state, NOTHING_RECOVERED
        for kept in state.finals:
            if not kept.is_delivered:
                self._queue.expect_delivery(kept.key)
            self._keep(kept)
        # Suspects go first, those with the fewest crashes before the others.
        for record in sorted(state.requests, key=_by_crashes):
            if _is_lost_with_us(record.ticket):
                self._journal.forget(record.key)
                continue
            self._recovered[record.key] = record
            self._queue.resume(record)

    def _go(self, record: RequestRecord) -> None:
        if record.is_elsewhere or record.is_final_sent or not self.runner.is_open:
            return
        if record.state == "accepted":
            self.publisher.send_state(record)
        self._counters.count("resumed")
        num_tokens = sum(len(committed.tokens) for committed in record.resumed.values())
        logger.info("request resumed: request=%s tokens=%d", record.key, num_tokens)
        if record.fault is not None:
            self.runner.fail(record, "failed", record.fault)
        else:
            self.runner.start(record)

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


def _is_lost_with_us(ticket: ReplyAddress) -> bool:
    """Whether no client can request the answer once this process has ended."""
    return ticket.is_local and not ticket.is_named


def _by_crashes(record: RequestRecord) -> tuple[bool, int]:
    return not record.num_crashes, record.num_crashes


def _age_s(claim: Claim) -> float:
    return max(0.0, time.time() - claim.asked_s)
