"""Who is let in, and what is known of whom: the door before the requests at work.

It decides by its ledger and its places, and lets `RequestRunner` do the rest. It sends publications
through a plain call and knows no broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, NoReturn

from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.errors import JournalUnavailable, Refusal, RequestError
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.cluster_queue.coordinator import QueueCoordinator
from edgecosine.node.cluster_queue.single_target import SingleTarget
from edgecosine.node.durability.interface import KEEP_ANSWERS_S, FinishedRecord, Journal, NoJournal
from edgecosine.node.durability.recovery import DEADLY, NO_PAST, RecoveredRequest, RecoveredState
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.request_runner import RequestRunner
from edgecosine.node.gateway.request_table import FinishedRequest, RequestTable, RunningRequest
from edgecosine.node.gateway.service import Service
from edgecosine.node.gateway.session_slots import SessionSlots
from edgecosine.node.runtime.failures import (
    DRAINING,
    JOURNAL_RETRY_S,
    NOT_TAKEN,
    fault_of,
    log_failure,
    unavailable,
)
from edgecosine.protocol.api.choices import choices_of
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.mqtt_message import Outgoing, nothing
from edgecosine.protocol.api.replies import error_message, undeliverable
from edgecosine.protocol.api.request_record import ReplyAddress, RequestRecord
from edgecosine.protocol.api.topics import Topics

logger = logging.getLogger(__name__)

MAX_TAKEN_OVER: Final = 3
"""A request that more targets than these did not survive is taken for what ends them."""
_MAX_CANCELLED: Final = 256
MAX_REFUSALS: Final = 2048
MAX_REFUSALS_PER_CLIENT: Final = 512
"""Refusals that the broker does not have yet; beyond, they are counted and not sent, since each
costs as much as an answer and would go before answers."""


class RequestManager:
    """The door. `run` until cancelled; then each request at work is left to the next process where
    there is a journal, and told so where there is none."""

    def __init__(
        self,
        service: Service,
        *,
        topics: Topics,
        send: Callable[[Outgoing], None],
        admission: AdmissionControl,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
        journal: Journal | None = None,
        past: RecoveredState = NO_PAST,
        keep_answers_s: float = KEEP_ANSWERS_S,
        sharing: QueueCoordinator | SingleTarget | None = None,
    ) -> None:
        self._service = service
        self._wall_clock_s = wall_clock_s
        self._counters = counters or Counters()
        self._complaints = LogThrottle()
        self._refusals: dict[Outgoing, str] = {}
        """Those that the broker does not have, and their clients."""
        self._num_refusals: Counter[str] = Counter()
        self._journal = journal or NoJournal()
        self._past = past
        self._jobs: dict[str, RecoveredRequest] = {}
        """Of the past, those that are not known to be ours yet."""
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        """Requests that are not at work here, and are not wanted if they come to be."""
        self._sharing = sharing or SingleTarget(wall_clock_s)
        self._sharing.serve(self)
        self._keep_answers_s = keep_answers_s
        self._ledger = RequestTable(max_sessions=service.max_sessions, keep_s=keep_answers_s)
        self._places = SessionSlots(admission)
        self._telling = ReplyPublisher(
            topics=topics, publish=send, journal=self._journal, sharing=self._sharing
        )
        self._answering = RequestRunner(
            service,
            ledger=self._ledger,
            places=self._places,
            telling=self._telling,
            journal=self._journal,
            keep_answers_s=keep_answers_s,
            wall_clock_s=wall_clock_s,
            counters=self._counters,
        )
        self._objection: Refusal | None = None

    def __repr__(self) -> str:
        return f"<RequestManager {self._ledger!r} {self._places!r}>"

    async def run(self) -> NoReturn:
        """Let requests in until cancelled."""
        try:
            async with self._answering.open():
                self._resume()
                await asyncio.Event().wait()
        finally:
            is_handed_over = self._sharing.has_stand_in
            for entry in self._ledger.at_work:
                self._answering.leave(entry, is_handed_over=is_handed_over)
            await self._journal.settled()
        raise AssertionError("a reception ends by an exception")

    def drain(self) -> None:
        """Let nobody else in."""
        self._objection = DRAINING

    def heed(self, reason: str | None) -> None:
        """Why requests cannot be answered now; None: they can. New ones are refused with it, and
        those at work are told in their states."""
        self._telling.stall = reason
        for entry in self._ledger.at_work:
            self._telling.state(entry)
        if self._objection is not DRAINING:
            self._objection = None if reason is None else unavailable(reason)

    async def idle(self) -> None:
        """Wait until no request is at work."""
        await self._answering.idle()

    def take(self, reading: RequestRecord, taken: Callable[[], None] = nothing) -> None:
        """Answer what was asked before; what is new is started here, or by another target.

        `taken` is called when the request need not come again.
        """
        taken = partial(self._journal.then, taken)
        ticket = reading.ticket
        try:
            known = self._ledger.recall(ticket, _now())
            if known is None:
                self._cancelled.pop(ticket.key, None)
                self._sharing.hear(ticket, reading.request, taken)
                return
            self._repeat(ticket, known)
        except RequestError as error:
            self.refuse(ticket, error)
        except Exception as error:  # noqa: BLE001 -- it is this request's
            log_failure(ticket.key, error)
            self.refuse(ticket, fault_of(error))
        taken()

    def start(self, claim: Claim) -> None:
        """A request is ours: go on with it, or start it, or refuse what there is no room for."""
        self._fence(claim.ticket, partial(self._start, claim))

    def _fence(self, ticket: ReplyAddress, step: Callable[[], None]) -> None:
        """Do a step of a request; what it raises is the end of this request alone."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- whatever it is
            if (entry := self._ledger.at(ticket.key)) is not None:
                self._answering.abort(entry, error)
                return
            log_failure(ticket.key, error)
            self._journal.forget(ticket.key)
            self._sharing.withdraw(ticket)
            self.refuse(ticket, fault_of(error))

    def _start(self, claim: Claim) -> None:
        if not self._answering.is_open and self._sharing.has_stand_in:
            return  # that one takes it over as soon as we have gone
        if (job := self._jobs.pop(claim.key, None)) is not None:
            self._go_on(job, _now())
        elif claim.generation:
            self._take_over(claim)
        else:
            self._let_in(claim)
        if claim.key in self._cancelled:
            del self._cancelled[claim.key]
            self.cancel(claim.ticket.request_id, claim.ticket.client_id)

    def give_up(self, key: str) -> None:
        """Another target answers a request."""
        logger.info("request given up, another target has it: request=%s", key)
        self._jobs.pop(key, None)
        self._telling.forget(key)
        entry = self._ledger.forget(key)
        if entry is not None:
            self._answering.abandon(entry)
        self._journal.forget(key)

    def knows(self, key: str) -> bool:
        """Whether a request was answered here."""
        return self._ledger.has_answered(key)

    def _let_in(self, claim: Claim) -> None:
        ticket, request = claim.ticket, claim.request
        try:
            if not self._answering.is_open:
                raise DRAINING.error()
            if self._objection is not None:
                raise self._objection.error()
            self._places.check(choices_of(request))
            entry = self._ledger.admit(ticket, request, _now() - self._age_s(claim))
        except RequestError as error:
            self._sharing.withdraw(ticket)
            self.refuse(ticket, error)
            return
        # Its place counts from now on; whoever comes next finds one less.
        self._answering.book(entry)
        model = model_of(self._service)
        self._journal.accept(ticket, entry.request, model, partial(self._accepted, entry))

    def _take_over(self, claim: Claim) -> None:
        """Go on with what another target has let in; its tokens are made again."""
        logger.info("request taken over: request=%s from=%s", claim.key, claim.taken_from)
        fault = DEADLY if claim.generation > MAX_TAKEN_OVER else None
        # One target may end for any reason; of the next ones it may be the cause.
        num_deaths = claim.generation - 1
        job = RecoveredRequest(
            claim.ticket, claim.request, self._age_s(claim), {}, num_deaths=num_deaths, fault=fault
        )
        entry = self._book(job, _now())
        # Where it cannot be journalled it is answered all the same.
        go = partial(self._fence, claim.ticket, partial(self._go, job, entry))
        model = model_of(self._service)
        self._journal.accept(claim.ticket, claim.request, model, lambda _: go())

    def _age_s(self, claim: Claim) -> float:
        return max(0.0, self._wall_clock_s() - claim.asked_s)

    def refuse(
        self, ticket: ReplyAddress, error: RequestError | Refusal, cause: Exception | None = None
    ) -> None:
        """Answer with an error what never was at work; `cause` is what nobody foresaw."""
        if cause is not None:
            log_failure(ticket.key, cause)
        self._counters.count("refused", error.code)
        if self._complaints.is_due(error.code, _now()):
            logger.info("request refused: request=%s code=%s", ticket.key, error.code)
        num_unsent = self._num_refusals.get(ticket.client_id, 0)
        if num_unsent >= MAX_REFUSALS_PER_CLIENT or len(self._refusals) >= MAX_REFUSALS:
            self._counters.count("unsaid_refusals")
            return
        message = error_message(ticket, error)
        if message not in self._refusals:
            self._refusals[message] = ticket.client_id
            self._num_refusals[ticket.client_id] += 1
        self._telling.send(message)

    def cancel(self, request_id: str, client_id: str | None) -> None:
        """End a request at work, if there is one of that name."""
        entry = self._ledger.find(request_id, client_id)
        if entry is not None:
            self._answering.cancel(entry)
        elif client_id is not None:
            self._cancelled[f"{client_id}/{request_id}"] = None
            if len(self._cancelled) > _MAX_CANCELLED:
                self._cancelled.popitem(last=False)

    def cancel_all(self, client_id: str) -> None:
        """End all requests of a client that has gone."""
        for entry in self._ledger.at_work:
            if entry.ticket.client_id == client_id:
                self._answering.cancel(entry)

    def delivered(self, message: Outgoing) -> None:
        """The broker has a message."""
        if (client_id := self._refusals.pop(message, None)) is not None:
            self._num_refusals[client_id] -= 1
            if not self._num_refusals[client_id]:
                del self._num_refusals[client_id]
        self._telling.delivered(message)

    def undeliverable(self, message: Outgoing, _: str) -> None:
        """No broker takes a message: its asker is told so where it was a final one."""
        key, notice = self._telling.give_up(message), undeliverable(message, NOT_TAKEN)
        if key is not None and notice is not None:
            self._counters.count("failed", NOT_TAKEN.code)
            if (known := self._ledger.finished(key)) is not None:
                self._keep(key, replace(known, state="failed", final=notice))
            self._telling.owe(key, notice)
        elif key is not None:
            self._telling.settle(key)
        elif notice is not None:
            self._telling.send(notice)

    def _keep(self, key: str, finished: FinishedRequest) -> None:
        """Keep another answer of a request, in the journal, too."""
        self._ledger.keep(key, finished)
        left_s = min(self._keep_answers_s, max(0.0, finished.until - _now()))
        kept_until = self._journal.wall_s() + left_s
        self._journal.finish(
            FinishedRecord(key, finished.digest, finished.state, finished.final, kept_until)
        )

    def _accepted(self, entry: RunningRequest, is_journalled: bool) -> None:
        """A new request is in the journal, or cannot be."""
        self._fence(entry.ticket, partial(self._begin, entry, is_journalled))

    def _begin(self, entry: RunningRequest, is_journalled: bool) -> None:
        if entry.is_elsewhere or entry.is_told:
            return
        if not is_journalled:
            self._answering.drop(entry)
            self._journal.forget(entry.ticket.key)
            self._sharing.withdraw(entry.ticket)
            self.refuse(entry.ticket, JournalUnavailable(JOURNAL_RETRY_S))
        elif self._answering.is_open:
            self._telling.state(entry)
            self._answering.start(entry)

    def _repeat(self, ticket: ReplyAddress, known: RunningRequest | FinishedRequest) -> None:
        """The same request came again, maybe from a new connection: the newest address counts."""
        self._counters.count("repeated")
        if isinstance(known, FinishedRequest):
            if self._sharing.is_held(ticket.key):
                return
            self._sharing.repeat(ticket)
            final = known.final
            self._telling.again(
                replace(final, topic=ticket.reply_topic, correlation=ticket.correlation)
            )
            return
        if known.ticket != ticket:
            known.ticket = ticket
            self._journal.readdress(ticket)
        self._telling.state(known)
        self._telling.parts_again(known)

    def _resume(self) -> None:
        """Go on where a former process was, as far as no other target has."""
        now, self._past, past = _now(), NO_PAST, self._past
        for kept in past.answers:
            until = now + min(kept.kept_until - self._journal.wall_s(), self._keep_answers_s)
            self._ledger.keep(kept.key, FinishedRequest(kept.digest, kept.state, kept.final, until))
            if not kept.is_delivered:
                self._sharing.owe(kept.key)
                for part in kept.parts:
                    self._telling.send(part)
                self._telling.owe(kept.key, kept.final)
        # Suspects first, and of these whoever is the least likely to end this process, too.
        for job in sorted(past.jobs, key=lambda job: (not job.num_deaths, job.num_deaths)):
            self._jobs[job.ticket.key] = job
            self._sharing.resume(job.ticket, job.request, job.age_s)

    def _go_on(self, job: RecoveredRequest, now: float) -> None:
        self._go(job, self._book(job, now))

    def _book(self, job: RecoveredRequest, now: float) -> RunningRequest:
        entry = RunningRequest(
            job.ticket, job.request, since=now - job.age_s, said=job.said,
            is_suspect=job.num_deaths > 0 and job.fault is None,
        )  # fmt: skip
        self._ledger.restore(entry)
        self._answering.book(entry)
        return entry

    def _go(self, job: RecoveredRequest, entry: RunningRequest) -> None:
        if entry.is_elsewhere or entry.is_told or not self._answering.is_open:
            return
        if job.has_begun:
            entry.state = "queued"
        else:
            self._telling.state(entry)
        self._counters.count("resumed")
        num_tokens = sum(len(said.tokens) for said in job.said.values())
        logger.info("request resumed: request=%s tokens=%d", job.ticket.key, num_tokens)
        if job.fault is not None:
            self._answering.fail(entry, "failed", job.fault)
            return
        self._answering.start(entry)


def model_of(service: Service) -> str:
    """What a service's answers depend on, so that no other one goes on with them."""
    return ",".join(service.info["models"])


def _now() -> float:
    return asyncio.get_running_loop().time()
