"""Requests at work: each is one task, from the moment it is let in to its one final message.

A request's end is text, error, cancelled or expired, and comes exactly once. Where a journal is
kept, the end of this process is none: the next one goes on. Whatever is raised while a request is
at work is its own end, and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from edgecosine.counters import Counters
from edgecosine.errors import ActorStopped, Refusal, RequestError, root_of
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.durability.interface import FinishedRecord, Journal
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.request_table import RequestTable, RunningRequest
from edgecosine.node.gateway.service import Service
from edgecosine.node.gateway.session_slots import QueuePosition, SessionSlots
from edgecosine.node.runtime.failures import (
    CANCELLED,
    EXPIRED,
    INTERNAL,
    LEAVING,
    TOO_LONG,
    fault_of,
    log_failure,
)
from edgecosine.protocol.api.choices import choices_of, join_answers
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.replies import answer_message, error_message
from edgecosine.protocol.api.request import NOTHING, Answer, Committed, Delta, Request, Started
from edgecosine.protocol.api.request_record import RequestStatus

logger = logging.getLogger(__name__)


class RequestRunner:
    """Has the requests of a ledger answered while it is `open`."""

    def __init__(
        self,
        service: Service,
        *,
        ledger: RequestTable,
        places: SessionSlots,
        telling: ReplyPublisher,
        journal: Journal,
        keep_answers_s: float,
        wall_clock_s: Callable[[], float],
        counters: Counters,
    ) -> None:
        self._service = service
        self._ledger, self._places, self._telling = ledger, places, telling
        self._journal, self._keep_answers_s = journal, keep_answers_s
        self._wall_clock_s, self._counters = wall_clock_s, counters
        self._complaints = LogThrottle()
        self._turns: dict[RunningRequest, list[tuple[Request, QueuePosition]]] = {}
        """The choices of each request at work, and their places at the target."""
        self._scopes: dict[RunningRequest, asyncio.Timeout] = {}
        self._tasks: dict[RunningRequest, asyncio.Task[None]] = {}
        self._sessions = asyncio.TaskGroup()
        self._left = asyncio.Event()
        self.is_open = False

    def __repr__(self) -> str:
        return f"<RequestRunner [{len(self._turns)} at work]>"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Requests can be started here; who is still at work at the end is torn away."""
        async with self._sessions:
            self.is_open = True
            try:
                yield
            finally:
                self.is_open = False

    def book(self, entry: RunningRequest) -> None:
        """A request is in the ledger: its choices take their places in the queue."""
        choices = [
            replace(request, said=entry.said.get(request.choice, NOTHING))
            for request in choices_of(entry.request)
        ]
        turns = self._places.book(choices, is_suspect=entry.is_suspect)
        self._turns[entry] = list(zip(choices, turns, strict=True))

    def start(self, entry: RunningRequest) -> None:
        """Have a booked request answered."""
        name = f"reception.{entry.ticket.key}"
        task = self._sessions.create_task(self._serve(entry), name=name)
        self._tasks[entry] = task
        task.add_done_callback(lambda _: self._tasks.pop(entry, None))

    def drop(self, entry: RunningRequest) -> None:
        """A booked request was not let in after all."""
        self._ledger.drop(entry)
        self._vacate(entry)

    def abandon(self, entry: RunningRequest) -> None:
        """Another target answers the request: not a word of it from here any more."""
        entry.is_elsewhere = True
        self._vacate(entry)
        if (task := self._tasks.get(entry)) is not None:
            task.cancel()

    def cancel(self, entry: RunningRequest) -> None:
        """The asker does not want the answer any more."""
        scope = self._scopes.get(entry)
        if scope is None:
            entry.is_cancelled = True
        elif not scope.expired():
            entry.is_cancelled = True
            scope.reschedule(_now())

    def leave(self, entry: RunningRequest, *, is_handed_over: bool = False) -> None:
        """This process ends: the next one, or another target, goes on."""
        if is_handed_over and not self._journal.is_durable:
            logger.info("request left to another target: request=%s", entry.ticket.key)
        elif self._journal.is_durable:
            logger.info("request left to the next start: request=%s", entry.ticket.key)
            # After a failure any of them may be what the engine cannot bear, as after a kill.
            if not self._service.has_broken:
                self._journal.leave(entry.ticket.key)
        else:
            self.fail(entry, "failed", LEAVING)

    def fail(
        self, entry: RunningRequest, state: RequestStatus, error: RequestError | Refusal
    ) -> None:
        """End a request without an answer."""
        self._counters.count("failed", error.code)
        self._finish(entry, state, error_message(entry.ticket, error))

    async def idle(self) -> None:
        """Wait until no request is at work."""
        while self._ledger.at_work:
            self._left.clear()
            await self._left.wait()

    def abort(self, entry: RunningRequest, error: BaseException) -> None:
        """End a request for what was raised at it, whatever that was and wherever it stands."""
        log_failure(entry.ticket.key, error)
        if entry.is_told:
            return
        fault = fault_of(error) if self.is_open else LEAVING
        for wants_stream in (entry.ticket.wants_stream, False):
            entry.ticket = replace(entry.ticket, wants_stream=wants_stream)
            try:
                self.fail(entry, "failed", fault)
            except Exception as another:  # noqa: BLE001 -- the final must go out
                log_failure(entry.ticket.key, another)
            if entry.is_told or entry.is_elsewhere:
                return
        self._ledger.forget(entry.ticket.key)
        self._vacate(entry)

    async def _serve(self, entry: RunningRequest) -> None:
        try:
            await self._live(entry)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- panics of tokenizers are no Exceptions
            self.abort(entry, error)

    async def _live(self, entry: RunningRequest) -> None:
        """The life of one request at the door. Cancellation by its asker is an early deadline."""
        try:
            async with asyncio.timeout_at(_when(entry)) as scope:
                self._scopes[entry] = scope
                if entry.is_cancelled:
                    scope.reschedule(_now())
                self._advance(entry, "queued")
                answer = await self._answer(entry)
        except TimeoutError:
            if not scope.expired():
                raise
            self._end_early(entry)
        except RequestError as error:
            self.fail(entry, "failed", error)
        except ActorStopped as error:
            logger.warning("request interrupted: request=%s error=%r", entry.ticket.key, error)
            self._interrupt(entry)
        except asyncio.CancelledError:
            # A task group inside the session that has failed once makes Python 3.11 take our
            # time-out for somebody's cancellation.
            if not (self.is_open and scope.expired()):
                raise  # and the reception leaves all that is at work
            self._end_early(entry)
        else:
            created_s = int(self._wall_clock_s())
            final = answer_message(entry.ticket, entry.request, answer, created_s=created_s)
            self._finish(entry, "done", final)

    async def _answer(self, entry: RunningRequest) -> Answer:
        """Have all choices of a request made side by side; the first failure ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                choices = [
                    group.create_task(self._choose(entry, request, turn), name=request.key)
                    for request, turn in self._turns[entry]
                ]
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None
        return join_answers([choice.result() for choice in choices])

    async def _choose(self, entry: RunningRequest, request: Request, turn: QueuePosition) -> Answer:
        """Have one choice made, journal its tokens, and pass its text on."""
        position = len(request.said.tokens)
        async with turn, contextlib.aclosing(self._service.answer(request)) as progress:
            begun = _now()
            if not entry.has_begun:
                entry.has_begun = True
                self._journal.begin(entry.ticket.key)
                if entry.is_suspect:
                    await self._journal.settled()  # if it ends this process, that is to be known
            async for step in progress:
                match step:
                    case Started():
                        self._advance(entry, "running")
                    case Committed():
                        position = self._commit(entry, request, position, step)
                    case Delta():
                        self._advance(entry, "running")
                        position = self._commit(entry, request, position, step.committed)
                        self._telling.part(entry, request.choice, step.text)
                    case Answer():
                        self._places.learn(turn, request, step, _now() - begun)
                        queue_s = begun - turn.since
                        return replace(step, metrics=replace(step.metrics, queue_s=queue_s))
        raise RuntimeError("the service ended without an answer")

    def _commit(
        self, entry: RunningRequest, request: Request, position: int, committed: Committed
    ) -> int:
        """Journal a round's tokens; returns how many there are now."""
        if committed.tokens:
            self._journal.commit(entry.ticket.key, request.choice, position, committed)
        return position + len(committed.tokens)

    def _end_early(self, entry: RunningRequest) -> None:
        if entry.is_cancelled:
            self.fail(entry, "cancelled", CANCELLED)
        else:
            self.fail(entry, "expired", EXPIRED)

    def _interrupt(self, entry: RunningRequest) -> None:
        """The engine has ended.

        A process that ends takes its actors along, some of them before us, and without its engine
        it ends; a request that is in the journal outlives it.
        """
        if not self._journal.is_durable:
            self.fail(entry, "failed", INTERNAL if self.is_open else LEAVING)

    def _finish(self, entry: RunningRequest, state: RequestStatus, final: Outgoing) -> None:
        if entry.is_elsewhere:
            return
        if len(final.payload) > MAX_PAYLOAD_BYTES:
            state, final = "failed", error_message(entry.ticket, TOO_LONG)
        key, digest = entry.ticket.key, entry.ticket.digest
        kept_until = self._journal.wall_s() + self._keep_answers_s
        is_stream = entry.ticket.wants_stream
        parts = self._telling.whole(entry) if is_stream else ()
        self._journal.finish(FinishedRecord(key, digest, state, final, kept_until, parts=parts))
        self._ledger.finish(entry, state, final, _now())
        self._vacate(entry)
        if is_stream:
            self._telling.last_part(entry)
        self._telling.owe(key, final)
        entry.is_told = True
        self._telling.state(entry)
        # What was answered has its line from the session.
        is_told = state != "done" and self._complaints.is_due(state, _now())
        level = logging.INFO if is_told else logging.DEBUG
        logger.log(level, "request finished: request=%s state=%s", key, state)

    def _vacate(self, entry: RunningRequest) -> None:
        self._scopes.pop(entry, None)
        # Also of choices that ended before their first step.
        self._places.leave([turn for _, turn in self._turns.pop(entry, ())])
        self._left.set()

    def _advance(self, entry: RunningRequest, state: RequestStatus) -> None:
        if self._ledger.advance(entry, state):
            self._telling.state(entry)


def _when(entry: RunningRequest) -> float | None:
    """The moment, in the loop's time, at which the answer is worth nothing."""
    deadline_s = entry.request.deadline_s
    return None if math.isinf(deadline_s) else entry.since + deadline_s


def _now() -> float:
    return asyncio.get_running_loop().time()
