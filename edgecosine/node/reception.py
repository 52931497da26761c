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
from typing import NoReturn

from edgecosine.balance.admission import Admission
from edgecosine.errors import EdgecosineError, RequestError
from edgecosine.node.counters import Counters
from edgecosine.node.ledger import Entry, Finished, Ledger
from edgecosine.node.queueing import Places, Turn
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
from edgecosine.protocol.request import Answer, Delta, Request, Started
from edgecosine.protocol.topics import Topics

logger = logging.getLogger(__name__)

_CANCELLED = RequestError("the request was cancelled", code="cancelled", status=499)
_EXPIRED = RequestError("the request's deadline has passed", code="deadline_exceeded", status=408)
_INTERNAL = RequestError("the cluster failed at this request", code="internal_error", status=500)
_LEAVING = RequestError("the cluster is shutting down", code="shutting_down", status=503)
_DRAINING = RequestError(
    "the cluster takes no more requests, for it is restarting",
    code="draining",
    status=503,
    retry_after_s=5.0,
)
_TOO_LONG = RequestError("the answer is too long for MQTT", code="answer_too_large", status=500)


class Reception:
    """The requests at work. `run` until cancelled; then each of them is told so."""

    def __init__(
        self,
        service: Service,
        *,
        topics: Topics,
        send: Callable[[Outgoing], None],
        admission: Admission,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
    ) -> None:
        self._service = service
        self._topics = topics
        self._send = send
        self._wall_clock_s = wall_clock_s
        self._counters = counters or Counters()
        self._ledger = Ledger(max_sessions=service.max_sessions)
        self._places = Places(admission)
        self._turns: dict[Entry, list[Turn]] = {}
        self._scopes: dict[Entry, asyncio.Timeout] = {}
        self._sessions = asyncio.TaskGroup()
        self._is_open = False
        self._objection: RequestError | None = None
        self._left = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Reception {self._ledger!r} {self._places!r}>"

    async def run(self) -> NoReturn:
        """Let requests in until cancelled."""
        try:
            async with self._sessions:
                self._is_open = True
                try:
                    await asyncio.Event().wait()
                finally:
                    self._is_open = False
        finally:
            # A task that is cancelled before its first step never runs at all.
            for entry in self._ledger.at_work:
                self._fail(entry, "failed", _LEAVING)
        raise AssertionError("a reception ends by an exception")

    def drain(self) -> None:
        """Let nobody else in."""
        self._objection = _DRAINING

    def heed(self, reason: str | None) -> None:
        """Why requests cannot be answered now, which new ones are told; None: they can."""
        if self._objection is not _DRAINING:
            self._objection = None if reason is None else _unavailable(reason)

    async def idle(self) -> None:
        """Wait until no request is at work."""
        while self._ledger.at_work:
            self._left.clear()
            await self._left.wait()

    def take(self, reading: Accepted) -> None:
        """Answer what was asked before, start what is new, refuse what there is no room for."""
        ticket = reading.ticket
        try:
            known = self._ledger.recall(ticket)
            if known is not None:
                self._repeat(ticket, known)
                return
            if not self._is_open:
                raise _LEAVING
            if self._objection is not None:
                raise self._objection
            choices = choices_of(reading.request)
            self._places.check(choices)
            entry = self._ledger.admit(ticket, reading.request, self._now())
        except RequestError as error:
            self.refuse(ticket, error)
            return
        self._turns[entry] = self._places.book(choices)
        self._send_state(entry)
        self._sessions.create_task(self._serve(entry), name=f"reception.{ticket.key}")

    def _repeat(self, ticket: Ticket, known: Entry | Finished) -> None:
        """The same request came again, maybe from a new connection: the newest address counts."""
        self._counters.count("repeated")
        if isinstance(known, Finished):
            self._send(
                replace(
                    known.final,
                    topic=ticket.reply_topic,
                    correlation=ticket.correlation,
                )
            )
            return
        known.ticket = ticket
        self._send_state(known)

    def refuse(self, ticket: Ticket, error: RequestError) -> None:
        """Answer with an error what never was at work."""
        self._counters.count("refused", error.code)
        logger.info("request refused request=%s code=%s", ticket.key, error.code)
        self._send(error_message(ticket, error))

    def cancel(self, request_id: str, client_id: str | None) -> None:
        """End a request at work, if there is one of that name."""
        entry = self._ledger.find(request_id, client_id)
        if entry is not None:
            self._cancel(entry)

    def cancel_all(self, client_id: str) -> None:
        """End all requests of a client that has gone."""
        for entry in self._ledger.at_work:
            if entry.ticket.client_id == client_id:
                self._cancel(entry)

    def _cancel(self, entry: Entry) -> None:
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
        except EdgecosineError as error:
            logger.warning("request failed request=%s error=%r", entry.ticket.key, error)
            # A node that ends takes its actors along, some of them before us.
            self._fail(entry, "failed", _INTERNAL if self._is_open else _LEAVING)
        except asyncio.CancelledError:
            # A task group inside the session that has failed once makes Python 3.11 take our
            # time-out for somebody's cancellation.
            if not (self._is_open and scope.expired()):
                self._fail(entry, "failed", _LEAVING)
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
        try:
            async with asyncio.TaskGroup() as group:
                choices = [
                    group.create_task(self._choose(entry, request, turn), name=request.key)
                    for request, turn in zip(
                        choices_of(entry.request), self._turns[entry], strict=True
                    )
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return join_answers([choice.result() for choice in choices])

    async def _choose(self, entry: Entry, request: Request, turn: Turn) -> Answer:
        """Have one choice made, and pass the parts on when the asker wants them."""
        async with turn, contextlib.aclosing(self._service.answer(request)) as progress:
            begun = self._now()
            async for step in progress:
                match step:
                    case Started():
                        self._advance(entry, "running")
                    case Delta():
                        self._advance(entry, "running")
                        choice = request.choice if entry.request.n > 1 else None
                        self._send_piece(entry, step.text, choice)
                    case Answer():
                        self._places.learn(turn, request, step, self._now() - begun)
                        queue_s = begun - entry.since
                        return replace(step, metrics=replace(step.metrics, queue_s=queue_s))
        raise RuntimeError("the service ended without an answer")

    def _end_early(self, entry: Entry) -> None:
        if entry.is_cancelled:
            self._fail(entry, "cancelled", _CANCELLED)
        else:
            self._fail(entry, "expired", _EXPIRED)

    def _fail(self, entry: Entry, state: State, error: RequestError) -> None:
        self._counters.count("failed", error.code)
        self._finish(entry, state, error_message(entry.ticket, error))

    def _finish(self, entry: Entry, state: State, final: Outgoing) -> None:
        if len(final.payload) > MAX_PAYLOAD_BYTES:
            state, final = "failed", error_message(entry.ticket, _TOO_LONG)
        self._scopes.pop(entry, None)
        # Also of choices that ended before their first step.
        self._places.leave(self._turns.pop(entry))
        self._ledger.finish(entry, state, final, self._now())
        self._left.set()
        self._send_piece(entry, "", None, is_last=True)
        self._send(final)
        self._send_state(entry)
        # What was answered has its line from the session.
        level = logging.DEBUG if state == "done" else logging.INFO
        logger.log(level, "request finished request=%s state=%s", entry.ticket.key, state)

    def _advance(self, entry: Entry, state: State) -> None:
        if self._ledger.advance(entry, state):
            self._send_state(entry)

    def _send_state(self, entry: Entry) -> None:
        self._send(state_message(self._topics, entry.ticket, entry.state))

    def _send_piece(
        self, entry: Entry, text: str, choice: int | None, *, is_last: bool = False
    ) -> None:
        if entry.ticket.wants_stream:
            piece = Piece(entry.num_pieces, text, is_last, choice)
            entry.num_pieces += 1
            self._send(piece_message(self._topics, entry.ticket, piece))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _unavailable(reason: str) -> RequestError:
    return RequestError(
        f"the target cannot answer now: {reason}",
        code="unavailable",
        status=503,
        retry_after_s=10.0,
    )


def _when(entry: Entry) -> float | None:
    """The moment, in the loop's time, at which the answer is worth nothing."""
    deadline_s = entry.request.deadline_s
    return None if math.isinf(deadline_s) else entry.since + deadline_s
