"""Places at the target for those who were let in: who waits here goes on when its turn comes.

Suspects, at which a former process may have ended, come first and alone, one after the other, so
that nobody goes down with the one that is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from edgecosine.balance.admission import AdmissionControl
from edgecosine.balance.fair_queue import FairJob
from edgecosine.protocol.api.request import Answer, Request


class QueuePosition:
    """`async with turn:` waits for a place and gives it back."""

    def __init__(self, places: SessionSlots, job: FairJob) -> None:
        self.job = job
        self.since = _now()
        """When it was booked."""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.num_tokens: int | None = None
        """That the session has made, once it has ended with an answer."""
        self._places = places

    def begin(self) -> None:
        """It has come; whoever was cancelled while waiting leaves in a moment."""
        if not self.begun.done():
            self.begun.set_result(None)

    async def __aenter__(self) -> Self:
        try:
            await self.begun
        except asyncio.CancelledError:
            self._places.leave([self])
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._places.leave([self])


class SessionSlots:
    """The sessions that may be at work at one time, and the queue before them."""

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission
        self._turns: dict[FairJob, QueuePosition] = {}
        self._suspects: list[list[QueuePosition]] = []
        """The turns of each, those of the one at work first."""

    def __repr__(self) -> str:
        return f"<SessionSlots {self._admission!r}>"

    def check(self, requests: Sequence[Request]) -> None:
        """Whether there is room for the choices of one request.

        Raises Overloaded.
        """
        jobs = [self._job(request) for request in requests]
        self._admission.check(jobs, requests[0].deadline_s, _now())

    def book(self, requests: Sequence[Request], *, is_suspect: bool = False) -> list[QueuePosition]:
        """A turn for each of the choices, which count from now on."""
        turns = [QueuePosition(self, self._job(request)) for request in requests]
        for turn in turns:
            self._turns[turn.job] = turn
            self._admission.add(turn.job)
        if is_suspect:
            self._suspects.append(list(turns))
        self._start()
        return turns

    def leave(self, turns: Sequence[QueuePosition]) -> None:
        """The turns have been used, or are not wanted any more; once is enough."""
        for turn in turns:
            if self._turns.pop(turn.job, None) is not None:
                turn.begun.cancel()
                self._admission.leave(turn.job, _now(), turn.num_tokens)
        left = [[turn for turn in each if turn.job in self._turns] for each in self._suspects]
        self._suspects = [turns for turns in left if turns]
        self._start()

    def learn(
        self, turn: QueuePosition, request: Request, answer: Answer, elapsed_s: float
    ) -> None:
        """A turn's session has made its answer in so much time."""
        # An end token that was said is none of the answer's.
        turn.num_tokens = max(0, answer.num_tokens - len(request.said.tokens))
        self._admission.pace.observe(turn.num_tokens, _room(request), elapsed_s)

    def _job(self, request: Request) -> FairJob:
        cost = self._admission.pace.tokens(_room(request))
        return FairJob(request.client_id, cost, request.priority)

    def _start(self) -> None:
        if self._suspects:
            if not self._admission.num_running:
                for turn in self._suspects[0]:
                    self._admission.take(turn.job, _now())
                    turn.begin()
            return
        while (job := self._admission.start(_now())) is not None:
            self._turns[job].begin()


def _room(request: Request) -> int:
    """Tokens that a session may still make; what was said before costs it nothing."""
    return request.max_tokens - len(request.said.tokens)


def _now() -> float:
    return asyncio.get_running_loop().time()
