"""Session slots at the target, and the queue before them.

Suspects, which may have crashed a former process, run first and one at a time, so that no other
request is lost with the one at fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from edgecosine.balance.admission import AdmissionControl
from edgecosine.balance.fair_queue import FairJob
from edgecosine.errors import Overloaded
from edgecosine.node.runtime.clock import loop_time
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer


class QueuePosition:
    """The place of one choice in the queue: `async with` waits for a slot and releases it."""

    def __init__(self, slots: SessionSlots, job: FairJob) -> None:
        self.job = job
        self.since = loop_time()
        self.has_slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.num_tokens: int | None = None
        """Tokens that the session generated; None before its answer."""
        self._slots = slots

    def give_slot(self) -> None:
        """Let the session start; a waiter that was cancelled releases the slot itself."""
        if not self.has_slot.done():
            self.has_slot.set_result(None)

    async def __aenter__(self) -> Self:
        try:
            await self.has_slot
        except asyncio.CancelledError:
            self._slots.release([self])
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._slots.release([self])


class SessionSlots:
    """The sessions that may run at the same time, and the queue of those that wait."""

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission
        self._positions: dict[FairJob, QueuePosition] = {}
        self._suspects: list[list[QueuePosition]] = []
        """Positions of each suspect, those of the running one first."""

    def __repr__(self) -> str:
        return f"<SessionSlots {self._admission!r}>"

    def check(self, requests: Sequence[Request]) -> None:
        """Check that the queue has room for the choices of one request.

        Raises Overloaded.
        """
        jobs = [self._job(request) for request in requests]
        self._admission.check(jobs, requests[0].deadline_s, loop_time())

    def has_room(self, requests: Sequence[Request]) -> bool:
        """Whether the queue has room for the choices of one request."""
        try:
            self.check(requests)
        except Overloaded:
            return False
        return True

    def book(self, requests: Sequence[Request], *, is_suspect: bool = False) -> list[QueuePosition]:
        """Return a queue position for each of the choices, which occupy the queue from now on."""
        positions = [QueuePosition(self, self._job(request)) for request in requests]
        for position in positions:
            self._positions[position.job] = position
            self._admission.add(position.job)
        if is_suspect:
            self._suspects.append(list(positions))
        self._start_next()
        return positions

    def release(self, positions: Sequence[QueuePosition]) -> None:
        """Free slots or queue positions; releasing one twice does nothing."""
        for position in positions:
            if self._positions.pop(position.job, None) is not None:
                position.has_slot.cancel()
                self._admission.leave(position.job, loop_time(), position.num_tokens)
        left = [[each for each in group if each.job in self._positions] for group in self._suspects]
        self._suspects = [group for group in left if group]
        self._start_next()

    def learn(
        self, position: QueuePosition, request: Request, answer: Answer, elapsed_s: float
    ) -> None:
        """Update the expected pace with an answer that took `elapsed_s` seconds."""
        # An end token among the resumed tokens is not part of the answer.
        position.num_tokens = max(0, answer.num_tokens - len(request.resumed.tokens))
        self._admission.pace.observe(position.num_tokens, _remaining_tokens(request), elapsed_s)

    def _job(self, request: Request) -> FairJob:
        cost = self._admission.pace.tokens(_remaining_tokens(request))
        return FairJob(request.client_id, cost, request.priority)

    def _start_next(self) -> None:
        if self._suspects:
            if not self._admission.num_running:
                for position in self._suspects[0]:
                    self._admission.take(position.job, loop_time())
                    position.give_slot()
            return
        while (job := self._admission.start(loop_time())) is not None:
            self._positions[job].give_slot()


def _remaining_tokens(request: Request) -> int:
    """Return the tokens that a session may still generate; resumed tokens cost it nothing."""
    return request.max_tokens - len(request.resumed.tokens)
