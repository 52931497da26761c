"""Where admitted requests live: each is one task from acceptance to its one final message.

It decides by its ledger and asks the service. It sends publications through a plain call and knows
no broker. A request's end is text, error, cancelled or expired, and comes exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn

from edgecosine.errors import ActorStopped, EdgecosineError, JournalUnavailable, RequestError
from edgecosine.node.ledger import Entry, Finished, Ledger
from edgecosine.node.records import KEEP_ANSWERS_S, Journal, Kept, NoJournal
from edgecosine.node.resume import NO_PAST, Job, Past
from edgecosine.node.service import Service
from edgecosine.protocol.answers import Piece
from edgecosine.protocol.choices import choices_of, join_answers
from edgecosine.protocol.intake import Accepted, Ticket
from edgecosine.protocol.publication import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.replies import (
    State,
    answer_message,
    error_message,
    piece_message,
    state_message,
)
from edgecosine.protocol.request import (
    NOTHING,
    Answer,
    Committed,
    Delta,
    Request,
    Started,
)
from edgecosine.protocol.topics import Topics

logger = logging.getLogger(__name__)

_RETRY_S = 5.0
_CANCELLED = RequestError("the request was cancelled", code="cancelled", status=499)
_EXPIRED = RequestError("the request's deadline has passed", code="deadline_exceeded", status=408)
_INTERNAL = RequestError("the cluster failed at this request", code="internal_error", status=500)
_LEAVING = RequestError("the cluster is shutting down", code="shutting_down", status=503)
_TOO_LONG = RequestError("the answer is too long for MQTT", code="answer_too_large", status=500)


class Reception:
    """The requests at work. `run` until cancelled; then each of them is told so."""

    def __init__(
        self,
        service: Service,
        *,
        topics: Topics,
        send: Callable[[Outgoing], None],
        max_queued: int,
        wall_clock_s: Callable[[], float] = time.time,
        journal: Journal | None = None,
        past: Past = NO_PAST,
        keep_answers_s: float = KEEP_ANSWERS_S,
    ) -> None:
        self._service = service
        self._topics = topics
        self._publish = send
        self._wall_clock_s = wall_clock_s
        self._journal = journal or NoJournal()
        self._past = past
        self._keep_answers_s = keep_answers_s
        self._undelivered: dict[Outgoing, str] = {}
        self._ledger = Ledger(
            max_sessions=service.max_sessions, max_queued=max_queued, keep_s=keep_answers_s
        )
        self._slots = asyncio.Semaphore(service.max_sessions)
        self._scopes: dict[Entry, asyncio.Timeout] = {}
        self._sessions = asyncio.TaskGroup()
        self._is_open = False

    def __repr__(self) -> str:
        return f"<Reception {self._ledger!r}>"

    async def run(self) -> NoReturn:
        """Let requests in until cancelled."""
        try:
            async with self._sessions:
                self._is_open = True
                self._resume()
                try:
                    await asyncio.Event().wait()
                finally:
                    self._is_open = False
        finally:
            # A task that is cancelled before its first step never runs at all.
            for entry in self._ledger.at_work:
                self._leave(entry)
            await self._journal.settled()
        raise AssertionError("a reception ends by an exception")

    def take(self, reading: Accepted) -> None:
        """Answer what was asked before, start what is new, refuse what there is no room for."""
        ticket = reading.ticket
        try:
            known = self._ledger.recall(ticket, self._now())
            if known is not None:
                self._repeat(ticket, known)
                return
            if not self._is_open:
                raise _LEAVING
            entry = self._ledger.admit(ticket, reading.request, self._now())
        except RequestError as error:
            self.refuse(ticket, error)
            return
        model = model_of(self._service)
        self._journal.accept(ticket, entry.request, model, partial(self._accepted, entry))

    def delivered(self, message: Outgoing) -> None:
        """The broker has a message."""
        key = self._undelivered.pop(message, None)
        if key is not None:
            self._journal.deliver(key)

    def _accepted(self, entry: Entry, is_journalled: bool) -> None:
        """A new request is in the journal, or cannot be."""
        if not is_journalled:
            self._ledger.drop(entry)
            self._journal.forget(entry.ticket.key)
            self.refuse(entry.ticket, JournalUnavailable(_RETRY_S))
        elif self._is_open:
            self._send_state(entry)
            self._start(entry)

    def _start(self, entry: Entry) -> None:
        self._sessions.create_task(self._serve(entry), name=f"reception.{entry.ticket.key}")

    def _resume(self) -> None:
        """Go on where a former process was."""
        now, self._past, past = self._now(), NO_PAST, self._past
        for kept in past.answers:
            until = now + min(kept.kept_until - self._wall_clock_s(), self._keep_answers_s)
            self._ledger.keep(kept.key, Finished(kept.digest, kept.state, kept.final, until))
            if not kept.is_delivered:
                self._undelivered[kept.final] = kept.key
                self._send(kept.final)
        for job in past.jobs:
            self._go_on(job, now)

    def _go_on(self, job: Job, now: float) -> None:
        entry = Entry(job.ticket, job.request, since=now - job.age_s, said=job.said)
        self._ledger.restore(entry)
        if job.has_begun:
            entry.state = "queued"
        else:
            self._send_state(entry)
        num_tokens = sum(len(said.tokens) for said in job.said.values())
        logger.info("request resumed request=%s tokens=%d", job.ticket.key, num_tokens)
        if job.fault is not None:
            self._fail(entry, "failed", job.fault)
            return
        self._start(entry)

    def _leave(self, entry: Entry) -> None:
        """This process ends: the next one goes on with what is in the journal."""
        if self._journal.is_durable:
            logger.info("request left to the next start request=%s", entry.ticket.key)
            self._journal.leave(entry.ticket.key)
        else:
            self._fail(entry, "failed", _LEAVING)

    def _repeat(self, ticket: Ticket, known: Entry | Finished) -> None:
        """The same request came again, maybe from a new connection: the newest address counts."""
        if isinstance(known, Finished):
            self._send(
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
        self._send_state(known)
        # Parts may have been lost with the asker's connection, or the broker.
        texts, known.texts = known.texts, {}
        for choice, text in texts.items():
            self._send_piece(known, text, choice if known.request.n > 1 else None)

    def refuse(self, ticket: Ticket, error: RequestError) -> None:
        """Answer with an error what never was at work."""
        logger.info("request refused request=%s code=%s", ticket.key, error.code)
        self._send(error_message(ticket, error))

    def cancel(self, request_id: str, client_id: str | None) -> None:
        """End a request at work, if there is one of that name."""
        entry = self._ledger.find(request_id, client_id)
        if entry is None:
            return
        scope = self._scopes.get(entry)
        if scope is None:
            entry.is_cancelled = True
        elif not scope.expired():
            entry.is_cancelled = True
            scope.reschedule(self._now())

    async def _serve(self, entry: Entry) -> None:
        """The life of one request at the door. Cancellation by its asker is an early deadline."""
        try:
            async with asyncio.timeout_at(_when(entry)) as scope:
                self._scopes[entry] = scope
                if entry.is_cancelled:
                    scope.reschedule(self._now())
                self._advance(entry, "queued")
                answer = await self._answer(entry)
        except TimeoutError:
            if not scope.expired():
                self._fail(entry, "failed", _INTERNAL)
                raise
            self._end_early(entry)
        except RequestError as error:
            self._fail(entry, "failed", error)
        except ActorStopped as error:
            # The engine is gone and this process with it; the request outlives both.
            logger.warning("request interrupted request=%s error=%r", entry.ticket.key, error)
            if not self._journal.is_durable:
                self._fail(entry, "failed", _INTERNAL)
        except EdgecosineError as error:
            logger.warning("request failed request=%s error=%r", entry.ticket.key, error)
            self._fail(entry, "failed", _INTERNAL)
        except asyncio.CancelledError:
            # A task group inside the session that has failed once makes Python 3.11 take our
            # time-out for somebody's cancellation.
            if not (self._is_open and scope.expired()):
                self._leave(entry)
                raise
            self._end_early(entry)
        except BaseException:
            self._fail(entry, "failed", _INTERNAL)
            raise
        else:
            self._finish(
                entry,
                "done",
                answer_message(
                    entry.ticket, entry.request, answer, created_s=int(self._wall_clock_s())
                ),
            )

    async def _answer(self, entry: Entry) -> Answer:
        """Have all choices of a request made side by side; the first failure ends them all."""
        queued_at = self._now()
        self._journal.begin(entry.ticket.key)
        try:
            async with asyncio.TaskGroup() as group:
                choices = [
                    group.create_task(self._choose(entry, request, queued_at), name=request.key)
                    for request in choices_of(entry.request)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return join_answers([choice.result() for choice in choices])

    async def _choose(self, entry: Entry, request: Request, queued_at: float) -> Answer:
        """Have one choice made, and pass the parts on when the asker wants them."""
        said = entry.said.get(request.choice, NOTHING)
        choice = request.choice if entry.request.n > 1 else None
        position = len(said.tokens)
        async with (
            self._slots,
            contextlib.aclosing(self._service.answer(replace(request, said=said))) as progress,
        ):
            queue_s = self._now() - queued_at
            async for step in progress:
                match step:
                    case Started():
                        self._advance(entry, "running")
                    case Committed():
                        position = self._commit(entry, request, position, step)
                    case Delta():
                        self._advance(entry, "running")
                        position = self._commit(entry, request, position, step.committed)
                        self._send_piece(entry, step.text, choice)
                    case Answer():
                        return replace(step, metrics=replace(step.metrics, queue_s=queue_s))
        raise RuntimeError("the service ended without an answer")

    def _commit(self, entry: Entry, request: Request, position: int, committed: Committed) -> int:
        """Journal a round's tokens; returns how many there are now."""
        if committed.tokens:
            self._journal.commit(entry.ticket.key, request.choice, position, committed)
        return position + len(committed.tokens)

    def _end_early(self, entry: Entry) -> None:
        if entry.is_cancelled:
            self._fail(entry, "cancelled", _CANCELLED)
        else:
            self._fail(entry, "expired", _EXPIRED)

    def _fail(self, entry: Entry, state: State, error: RequestError) -> None:
        self._finish(entry, state, error_message(entry.ticket, error))

    def _finish(self, entry: Entry, state: State, final: Outgoing) -> None:
        if len(final.payload) > MAX_PAYLOAD_BYTES:
            state, final = "failed", error_message(entry.ticket, _TOO_LONG)
        self._scopes.pop(entry, None)
        self._ledger.finish(entry, state, final, self._now())
        self._journal.finish(
            Kept(
                entry.ticket.key, entry.ticket.digest, state, final,
                self._wall_clock_s() + self._keep_answers_s,
            )
        )  # fmt: skip
        if self._journal.is_durable:
            self._undelivered[final] = entry.ticket.key
        self._send_piece(entry, "", None, is_last=True)
        self._send(final)
        self._send_state(entry)
        logger.info("request finished request=%s state=%s", entry.ticket.key, state)

    def _advance(self, entry: Entry, state: State) -> None:
        if self._ledger.advance(entry, state):
            self._send_state(entry)

    def _send_state(self, entry: Entry) -> None:
        self._send(state_message(self._topics, entry.ticket, entry.state))

    def _send_piece(
        self, entry: Entry, text: str, choice: int | None, *, is_last: bool = False
    ) -> None:
        if entry.ticket.wants_stream:
            before = entry.texts.get(choice or 0, "")
            entry.texts[choice or 0] = before + text
            index = sum(map(len, entry.texts.values())) if is_last else len(before)
            message = piece_message(self._topics, entry.ticket, Piece(index, text, is_last, choice))
            # Where all that a former process said is too long for one part, the final has it.
            if len(message.payload) <= MAX_PAYLOAD_BYTES:
                self._send(message)

    def _send(self, message: Outgoing) -> None:
        """Publish what follows from all that was journalled, once it is."""
        self._journal.then(partial(self._publish, message))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def model_of(service: Service) -> str:
    """What a service's answers depend on, so that no other one goes on with them."""
    return ",".join(service.info["models"])


def _when(entry: Entry) -> float | None:
    """The moment, in the loop's time, at which the answer is worth nothing."""
    deadline_s = entry.request.deadline_s
    return None if math.isinf(deadline_s) else entry.since + deadline_s
