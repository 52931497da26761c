"""Who is let in, and what is known of whom: the door before the requests at work.

It decides by its ledger and its places, and lets `Answering` do the rest. It sends publications
through a plain call and knows no broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn

from edgecosine.balance.admission import Admission
from edgecosine.errors import JournalUnavailable, RequestError
from edgecosine.node.answering import Answering
from edgecosine.node.counters import Counters
from edgecosine.node.faults import DRAINING, JOURNAL_RETRY_S, LEAVING, unavailable
from edgecosine.node.ledger import Entry, Finished, Ledger
from edgecosine.node.queueing import Places
from edgecosine.node.records import KEEP_ANSWERS_S, Journal, NoJournal
from edgecosine.node.resume import NO_PAST, Job, Past
from edgecosine.node.service import Service
from edgecosine.node.telling import Telling
from edgecosine.protocol.choices import choices_of
from edgecosine.protocol.intake import Accepted, Ticket
from edgecosine.protocol.publication import Outgoing
from edgecosine.protocol.replies import error_message
from edgecosine.protocol.topics import Topics

logger = logging.getLogger(__name__)


class Reception:
    """The door. `run` until cancelled; then each request at work is left to the next process where
    there is a journal, and told so where there is none."""

    def __init__(
        self,
        service: Service,
        *,
        topics: Topics,
        send: Callable[[Outgoing], None],
        admission: Admission,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
        journal: Journal | None = None,
        past: Past = NO_PAST,
        keep_answers_s: float = KEEP_ANSWERS_S,
    ) -> None:
        self._service = service
        self._wall_clock_s = wall_clock_s
        self._counters = counters or Counters()
        self._journal = journal or NoJournal()
        self._past = past
        self._keep_answers_s = keep_answers_s
        self._ledger = Ledger(max_sessions=service.max_sessions, keep_s=keep_answers_s)
        self._places = Places(admission)
        self._telling = Telling(topics=topics, publish=send, journal=self._journal)
        self._answering = Answering(
            service,
            ledger=self._ledger,
            places=self._places,
            telling=self._telling,
            journal=self._journal,
            keep_answers_s=keep_answers_s,
            wall_clock_s=wall_clock_s,
            counters=self._counters,
        )
        self._objection: RequestError | None = None

    def __repr__(self) -> str:
        return f"<Reception {self._ledger!r} {self._places!r}>"

    async def run(self) -> NoReturn:
        """Let requests in until cancelled."""
        try:
            async with self._answering.open():
                self._resume()
                await asyncio.Event().wait()
        finally:
            for entry in self._ledger.at_work:
                self._answering.leave(entry)
            await self._journal.settled()
        raise AssertionError("a reception ends by an exception")

    def drain(self) -> None:
        """Let nobody else in."""
        self._objection = DRAINING

    def heed(self, reason: str | None) -> None:
        """Why requests cannot be answered now, which new ones are told; None: they can."""
        if self._objection is not DRAINING:
            self._objection = None if reason is None else unavailable(reason)

    async def idle(self) -> None:
        """Wait until no request is at work."""
        await self._answering.idle()

    def take(self, reading: Accepted) -> None:
        """Answer what was asked before, start what is new, refuse what there is no room for."""
        ticket = reading.ticket
        try:
            known = self._ledger.recall(ticket, _now())
            if known is not None:
                self._repeat(ticket, known)
                return
            if not self._answering.is_open:
                raise LEAVING
            if self._objection is not None:
                raise self._objection
            self._places.check(choices_of(reading.request))
            entry = self._ledger.admit(ticket, reading.request, _now())
        except RequestError as error:
            self.refuse(ticket, error)
            return
        # Its place counts from now on; whoever comes next finds one less.
        self._answering.book(entry)
        model = model_of(self._service)
        self._journal.accept(ticket, entry.request, model, partial(self._accepted, entry))

    def refuse(self, ticket: Ticket, error: RequestError) -> None:
        """Answer with an error what never was at work."""
        self._counters.count("refused", error.code)
        logger.info("request refused request=%s code=%s", ticket.key, error.code)
        self._telling.send(error_message(ticket, error))

    def cancel(self, request_id: str, client_id: str | None) -> None:
        """End a request at work, if there is one of that name."""
        entry = self._ledger.find(request_id, client_id)
        if entry is not None:
            self._answering.cancel(entry)

    def cancel_all(self, client_id: str) -> None:
        """End all requests of a client that has gone."""
        for entry in self._ledger.at_work:
            if entry.ticket.client_id == client_id:
                self._answering.cancel(entry)

    def delivered(self, message: Outgoing) -> None:
        """The broker has a message."""
        self._telling.delivered(message)

    def _accepted(self, entry: Entry, is_journalled: bool) -> None:
        """A new request is in the journal, or cannot be."""
        if not is_journalled:
            self._answering.drop(entry)
            self._journal.forget(entry.ticket.key)
            self.refuse(entry.ticket, JournalUnavailable(JOURNAL_RETRY_S))
        elif self._answering.is_open:
            self._telling.state(entry)
            self._answering.start(entry)

    def _repeat(self, ticket: Ticket, known: Entry | Finished) -> None:
        """The same request came again, maybe from a new connection: the newest address counts."""
        self._counters.count("repeated")
        if isinstance(known, Finished):
            self._telling.send(
                replace(
                    known.final,
                    topic=ticket.reply_topic,
                    correlation=ticket.correlation,
                )
            )
            return
        if known.ticket != ticket:
            known.ticket = ticket
            self._journal.readdress(ticket)
        self._telling.state(known)
        self._telling.parts_again(known)

    def _resume(self) -> None:
        """Go on where a former process was."""
        now, self._past, past = _now(), NO_PAST, self._past
        for kept in past.answers:
            until = now + min(kept.kept_until - self._journal.wall_s(), self._keep_answers_s)
            self._ledger.keep(kept.key, Finished(kept.digest, kept.state, kept.final, until))
            if not kept.is_delivered:
                self._telling.owe(kept.key, kept.final)
        for job in past.jobs:
            self._go_on(job, now)

    def _go_on(self, job: Job, now: float) -> None:
        entry = Entry(job.ticket, job.request, since=now - job.age_s, said=job.said)
        self._ledger.restore(entry)
        self._answering.book(entry)
        if job.has_begun:
            entry.state = "queued"
        else:
            self._telling.state(entry)
        num_tokens = sum(len(said.tokens) for said in job.said.values())
        logger.info("request resumed request=%s tokens=%d", job.ticket.key, num_tokens)
        if job.fault is not None:
            self._answering.fail(entry, "failed", job.fault)
            return
        self._answering.start(entry)


def model_of(service: Service) -> str:
    """What a service's answers depend on, so that no other one goes on with them."""
    return ",".join(service.info["models"])


def _now() -> float:
    return asyncio.get_running_loop().time()
