"""Runs each accepted request as one task, until its one final.

A request ends with an answer or an error, or is cancelled or expires. With a journal the end of
this process ends no request: the next process continues it. An exception ends only the request
that raised it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from edgecosine.counters import Counters
from edgecosine.errors import ActorStopped, Refusal, RequestError, root_of
from edgecosine.log_throttle import LogThrottle
from edgecosine.metrics.measurements import ChoiceWatch, Measurements
from edgecosine.node.durability.interface import FinishedRecord, Journal
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.request_table import RequestTable
from edgecosine.node.gateway.service import Service
from edgecosine.node.gateway.session_slots import QueuePosition, SessionSlots
from edgecosine.node.runtime.clock import loop_time
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
from edgecosine.protocol.api.replies import FinalReply, RequestEnd, answer_reply, error_reply
from edgecosine.protocol.api.request import NOTHING, Committed, Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestStatus
from edgecosine.protocol.api.result import Answer, Delta, Started

logger = logging.getLogger(__name__)


class RequestRunner:
    """Runs requests while it is `open`."""

    def __init__(
        self,
        service: Service,
        *,
        table: RequestTable,
        slots: SessionSlots,
        publisher: ReplyPublisher,
        journal: Journal,
        keep_answers_s: float,
        counters: Counters,
        measurements: Measurements,
    ) -> None:
        self._service = service
        self._table, self._slots, self._publisher = table, slots, publisher
        self._journal, self._keep_answers_s = journal, keep_answers_s
        self._counters, self._log_throttle = counters, LogThrottle()
        self._measurements = measurements
        self._positions: dict[RequestRecord, list[tuple[Request, QueuePosition]]] = {}
        """The choices of each active request, and their queue positions."""
        self._deadlines: dict[RequestRecord, asyncio.Timeout] = {}
        self._tasks: dict[RequestRecord, asyncio.Task[None]] = {}
        self._task_group = asyncio.TaskGroup()
        self._request_ended = asyncio.Event()
        self.is_open = False

    def __repr__(self) -> str:
        return f"<RequestRunner [{len(self._positions)} active]>"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run requests within the block; those that are active at its end are cut off."""
        async with self._task_group:
            self.is_open = True
            try:
                yield
            finally:
                self.is_open = False

    def book(self, record: RequestRecord) -> None:
        """Make an accepted request active, and give its choices their queue positions."""
        self._table.add(record, loop_time())
        choices = [
            replace(request, resumed=record.resumed.get(request.choice, NOTHING))
            for request in choices_of(record.request)
        ]
        positions = self._slots.book(choices, is_suspect=record.is_suspect)
        self._positions[record] = list(zip(choices, positions, strict=True))

    def start(self, record: RequestRecord) -> None:
        """Run a booked request."""
        name = f"request.{record.key}"
        task = self._task_group.create_task(self._run(record), name=name)
        self._tasks[record] = task
        task.add_done_callback(lambda _: self._tasks.pop(record, None))

    def drop(self, record: RequestRecord) -> None:
        """Forget a booked request that was not accepted after all."""
        self._table.forget(record.key)
        self._release(record)

    def abandon(self, record: RequestRecord) -> None:
        """End a request that another target owns, without a reply."""
        record.is_elsewhere = True
        self._release(record)
        if (task := self._tasks.get(record)) is not None:
            task.cancel()

    def cancel(self, record: RequestRecord) -> None:
        """End a request that its client cancels."""
        deadline = self._deadlines.get(record)
        if deadline is None:
            record.is_cancelled = True
        elif not deadline.expired():
            record.is_cancelled = True
            deadline.reschedule(loop_time())

    def leave(self, record: RequestRecord, *, is_handed_over: bool = False) -> None:
        """Leave a request to the next process or another target, since this process ends."""
        if is_handed_over and not self._journal.is_durable:
            logger.info("request left to another target: request=%s", record.key)
        elif self._journal.is_durable:
            logger.info("request left to the next start: request=%s", record.key)
            # After an engine failure any running request may be the cause, as after a crash.
            if not self._service.has_engine_failed:
                self._journal.leave(record.key)
        else:
            self.fail(record, "failed", LEAVING)

    def fail(
        self, record: RequestRecord, state: RequestStatus, error: RequestError | Refusal
    ) -> None:
        """End a request without an answer."""
        self._counters.count("failed", error.code)
        self._measurements.count_failure("error" if state == "failed" else "abort")
        self._finish(record, state, error_reply(record.ticket, error))

    async def idle(self) -> None:
        """Wait until no request is active."""
        while self._table.active:
            self._request_ended.clear()
            await self._request_ended.wait()

    def abort(self, record: RequestRecord, error: BaseException) -> None:
        """End a request because of an exception, at any stage."""
        log_failure(record.key, error)
        if record.is_final_sent:
            return
        fault = fault_of(error) if self.is_open else LEAVING
        for wants_stream in (record.ticket.wants_stream, False):
            record.ticket = replace(record.ticket, wants_stream=wants_stream)
            try:
                self.fail(record, "failed", fault)
            except Exception as another:  # noqa: BLE001 -- the final must be sent
                log_failure(record.key, another)
            if record.is_final_sent or record.is_elsewhere:
                return
        self._table.forget(record.key)
        self._release(record)

    async def _run(self, record: RequestRecord) -> None:
        try:
            await self._run_to_final(record)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- a panic of a tokenizer is no Exception
            self.abort(record, error)

    async def _run_to_final(self, record: RequestRecord) -> None:
        """Run a request to its final. A cancel message acts as an early deadline."""
        deadline_at = None if math.isinf(record.deadline_at) else record.deadline_at
        try:
            async with asyncio.timeout_at(deadline_at) as deadline:
                self._deadlines[record] = deadline
                if record.is_cancelled:
                    deadline.reschedule(loop_time())
                self._advance(record, "queued")
                answer = await self._answer(record)
        except TimeoutError:
            if not deadline.expired():
                raise
            self._end_early(record)
        except RequestError as error:
            self.fail(record, "failed", error)
        except ActorStopped as error:
            logger.warning("request interrupted: request=%s error=%r", record.key, error)
            self._interrupt(record)
        except asyncio.CancelledError:
            # After a failed task group inside the session, Python 3.11 reports our time-out as a
            # cancellation from outside.
            if not (self.is_open and deadline.expired()):
                raise  # `RequestManager.run` leaves all active requests
            self._end_early(record)
        else:
            final = answer_reply(record.ticket, record.request, answer, created_s=int(time.time()))
            self._finish(record, "done", final)

    async def _answer(self, record: RequestRecord) -> Answer:
        """Generate all choices of a request concurrently; the first failure ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                choices = [
                    group.create_task(self._generate(record, request, position), name=request.key)
                    for request, position in self._positions[record]
                ]
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None
        return join_answers([choice.result() for choice in choices])

    async def _generate(
        self, record: RequestRecord, request: Request, position: QueuePosition
    ) -> Answer:
        """Generate one choice; its tokens are journalled and its text is streamed."""
        record.num_tokens[request.choice] = len(request.resumed.tokens)
        watch = self._measurements.watch(record.accepted_at)
        async with position, contextlib.aclosing(self._service.answer(request)) as progress:
            started_at = loop_time()
            if not record.has_started:
                record.has_started = True
                self._journal.begin(record.key)
                if record.is_suspect:
                    await self._journal.settled()  # a crash must find the start in the journal
            async for step in progress:
                match step:
                    case Started():
                        record.num_prompt_tokens = step.num_prompt_tokens
                        self._advance(record, "running")
                    case Committed():
                        self._commit(record, request, step, watch)
                    case Delta():
                        self._advance(record, "running")
                        self._commit(record, request, step.committed, watch)
                        self._publisher.send_part(record, request.choice, step)
                    case Answer():
                        self._slots.learn(position, request, step, loop_time() - started_at)
                        queue_s = started_at - position.since
                        request_s = loop_time() - record.accepted_at
                        self._measurements.count_answer(step, queue_s=queue_s, request_s=request_s)
                        return replace(step, metrics=replace(step.metrics, queue_s=queue_s))
        raise RuntimeError("the service ended without an answer")

    def _commit(
        self, record: RequestRecord, request: Request, committed: Committed, watch: ChoiceWatch
    ) -> None:
        """Count and journal the tokens of a round."""
        if committed.tokens:
            watch.deliver(len(committed.tokens), loop_time())
            num_before = record.num_tokens[request.choice]
            self._journal.commit(record.key, request.choice, num_before, committed)
            record.num_tokens[request.choice] = num_before + len(committed.tokens)

    def _end_early(self, record: RequestRecord) -> None:
        if record.is_cancelled:
            self.fail(record, "cancelled", CANCELLED)
        else:
            self.fail(record, "expired", EXPIRED)

    def _interrupt(self, record: RequestRecord) -> None:
        """End a request whose engine stopped, unless the journal lets the next process continue it.

        This process ends as well, since it cannot run without an engine.
        """
        if not self._journal.is_durable:
            self.fail(record, "failed", INTERNAL if self.is_open else LEAVING)

    def _finish(self, record: RequestRecord, state: RequestStatus, final: FinalReply) -> None:
        if record.is_elsewhere:
            return
        if len(final.body) > self._publisher.max_body_bytes:
            state, final = "failed", error_reply(record.ticket, TOO_LONG)
        kept_until = self._journal.wall_s() + self._keep_answers_s
        parts = self._publisher.whole_stream(record)
        self._journal.finish(
            FinishedRecord(record.key, record.ticket.digest, state, final, kept_until, parts=parts)
        )
        self._table.finish(record, state, final, loop_time())
        self._release(record)
        if record.ticket.wants_stream:
            self._publisher.send_last_part(record)
        self._publisher.send_final(record.key, RequestEnd(state, final, parts))
        record.is_final_sent = True
        self._publisher.send_state(record)
        # The session logs answers itself.
        is_logged = state != "done" and self._log_throttle.is_due(state, loop_time())
        level = logging.INFO if is_logged else logging.DEBUG
        logger.log(level, "request finished: request=%s state=%s", record.key, state)

    def _release(self, record: RequestRecord) -> None:
        self._deadlines.pop(record, None)
        # This includes choices that were cancelled before their first step.
        self._slots.release([position for _, position in self._positions.pop(record, ())])
        self._request_ended.set()

    def _advance(self, record: RequestRecord, state: RequestStatus) -> None:
        if record.advance(state):
            self._publisher.send_state(record)
