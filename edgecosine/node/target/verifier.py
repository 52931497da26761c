"""The actor around the target engine: one batched pass for all sessions that are ready.

It knows batches and passes, not drafts nor users. A session in prefill stays in the batch, chunk by
chunk beside the others' rounds, until its own verdict is there. A pass is held back a little for
sessions that are about to come, where that saves one. Of a pass that fails the works are tried one
by one: what fails alone is that session's, unless the engine then fails at everything.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Sequence
from typing import Protocol

from edgecosine.balance.batch_wait import ExpectedArrival
from edgecosine.balance.cost_model import PassReport
from edgecosine.engine.base import (
    FailedWork,
    Outcome,
    PassResult,
    Prefilling,
    TargetEngine,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.target.profile import profile
from edgecosine.errors import ActorStopped, EngineError
from edgecosine.node.runtime.clock import now
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.failures import cause_of
from edgecosine.node.runtime.mailbox import Envelope, Mailbox
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

logger = logging.getLogger(__name__)

NEXT_ROUND_S = 0.001
"""How soon a session with a verdict is expected again, unless it says otherwise."""
GRACE_S = 0.001
"""How much later than expected whoever a pass is held back for may come."""


_PROBE = VerifyWork("probe", (1,), 1, EMPTY_TREE, Sampling())
"""What every engine can do that is not broken."""


class PassCosts(Protocol):
    """Learns what passes cost, and tells when one is worth holding back."""

    def observe_pass(self, report: PassReport) -> None:
        """A pass is over."""

    def batch_wait_s(self, num_rows: int, arrivals: Sequence[ExpectedArrival]) -> float | None:
        """How long to hold a pass back for latecomers; None to start it at once."""


Waiting = Envelope[VerifyWork, VerificationResult]


class Verifier:
    """Batches sessions' works into passes."""

    def __init__(
        self,
        *,
        engine: TargetEngine,
        thread: EngineThread,
        max_batch: int,
        costs: PassCosts,
    ) -> None:
        self._engine, self._thread, self._max_batch = engine, thread, max_batch
        self._costs = costs
        self._mailbox: Mailbox[VerifyWork, VerificationResult] = Mailbox("verifying", 4 * max_batch)
        self._batch: list[Waiting] = []
        self._released: list[str] = []
        self._expected: dict[str, tuple[float, int]] = {}
        """When sessions that had a verdict are to come again, and with how many rows."""
        self.num_passes = 0
        self.busy_s = 0.0
        """Seconds in passes."""
        self.idle_s = 0.0
        """Seconds between the end of each pass and that of the next one, outside of it."""
        self.last_pass_s = 0.0
        """Seconds of the pass that gave the latest verdicts."""
        self.has_failed = False
        """Whether the engine failed at works, which any of them may have caused."""
        self._ended = 0.0

    def __repr__(self) -> str:
        waiting, expected = len(self._mailbox), len(self._expected)
        return f"<Verifier [{waiting} waiting, {expected} expected, {self.num_passes} passes]>"

    @property
    def num_held(self) -> int:
        """Works that wait for a pass or are in one."""
        return len(self._mailbox) + len(self._batch)

    async def verify(self, work: VerifyWork) -> VerificationResult:
        """The target's verdict on a tree.

        Raises ActorStopped when the engine has ended, and what the engine does at this work alone.
        """
        return await self._mailbox.ask(work)

    def expect(self, key: str, in_s: float, num_rows: int) -> None:
        """The session will ask again in so many seconds, with about so many rows."""
        if key in self._expected:
            self._expected[key] = (now() + in_s, num_rows)

    def release(self, key: str) -> None:
        """The session has ended; its slot is given back before the next pass."""
        self._expected.pop(key, None)
        self._released.append(key)

    async def run(self) -> None:
        """Measure what passes cost, then run them as long as there are works.

        Raises EngineError when the engine does not run any more.
        """
        try:
            for num_rows, elapsed_s in (await self._profile()).items():
                self._costs.observe_pass(PassReport(num_rows, elapsed_s))
            self._ended = now()
            while True:
                await self._gather_batch()
                if self._batch:
                    self._batch = self._settle(await self._pass())
        finally:
            self._mailbox.close()
            for envelope in self._batch:
                envelope.fail(ActorStopped("verifying has stopped"))

    async def _gather_batch(self) -> None:
        """The works still in prefill, those that came meanwhile, and those worth waiting for.

        Whoever is taken is in the batch at once, so that all hear of it when the actor ends.
        """
        ends = math.inf
        while True:
            self._batch = [envelope for envelope in self._batch if envelope.is_open]
            if not self._batch:
                self._batch = await self._mailbox.take(self._max_batch)
            self._batch += self._mailbox.take_nowait(self._max_batch - len(self._batch))
            moment = now()
            wait_s = self._batch_wait_s(moment)
            if wait_s is None:
                break
            ends = min(ends, moment + wait_s + GRACE_S)
            if not await self._mailbox.arrival(ends - moment):
                self._give_up(ends)
                self._batch = [envelope for envelope in self._batch if envelope.is_open]
                break
        for envelope in self._batch:
            self._expected.pop(envelope.message.key, None)

    def _batch_wait_s(self, moment: float) -> float | None:
        here = {envelope.message.key for envelope in self._batch}
        arrivals = [
            ExpectedArrival(at - moment, num_rows)
            for key, (at, num_rows) in self._expected.items()
            if key not in here
        ]
        if not arrivals or len(self._batch) == self._max_batch:
            return None
        num_rows = sum(self._num_rows(envelope.message) for envelope in self._batch)
        return self._costs.batch_wait_s(num_rows, arrivals)

    def _num_rows(self, work: VerifyWork) -> int:
        is_prefill = work.key not in self._expected
        return 1 + len(work.tree) + (len(work.tokens) if is_prefill else 0)

    def _give_up(self, until: float) -> None:
        """Whoever should have been there by now is not waited for again."""
        here = {envelope.message.key for envelope in self._batch}
        for key, (at, num_rows) in self._expected.items():
            if key not in here and at <= until:
                self._expected[key] = math.inf, num_rows

    async def _pass(self) -> PassResult:
        works = [envelope.message for envelope in self._batch]
        released, self._released = self._released, []
        try:
            result, elapsed_s = await self._run_engine(works, released)
        except EngineError:
            self.has_failed = True
            raise
        except Exception as error:  # noqa: BLE001 -- whose fault it is remains to be seen
            result = await self._one_by_one(works, error)
            self.num_passes += 1
            return result
        self.num_passes += 1
        ended = now()
        self.busy_s += elapsed_s
        cycle_s = ended - self._ended
        self.idle_s += cycle_s - elapsed_s
        self._ended, self.last_pass_s = ended, elapsed_s
        if result.num_rows:
            self._costs.observe_pass(_report(result, elapsed_s, cycle_s))
        return result

    async def _one_by_one(self, works: list[VerifyWork], error: Exception) -> PassResult:
        """The works of a pass that failed with `error`, each in a pass of its own.

        Raises EngineError when it is the engine that fails.
        """
        logger.warning("pass failed: works=%d cause=%s", len(works), cause_of(error))
        outcomes = [
            FailedWork(error) if len(works) == 1 else await self._alone(work) for work in works
        ]
        if any(isinstance(outcome, FailedWork) for outcome in outcomes):
            probe = await self._alone(_PROBE)
            self._released.append(_PROBE.key)
            if isinstance(probe, FailedWork):
                self.has_failed = True
                reason = cause_of(probe.error)
                raise EngineError(f"the engine does not run any more: {reason}")
        return PassResult(outcomes, 0)

    async def _alone(self, work: VerifyWork) -> Outcome:
        try:
            result, _ = await self._run_engine([work], [])
        except EngineError:
            self.has_failed = True
            raise
        except Exception as error:  # noqa: BLE001 -- it is this work's
            return FailedWork(error)
        return result.outcomes[0]

    async def _profile(self) -> dict[int, float]:
        return await self._thread.run(functools.partial(profile, self._engine))

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[PassResult, float]:
        call = functools.partial(_timed_step, self._engine, works, released)
        return await self._thread.run(call)

    def _settle(self, result: PassResult) -> list[Waiting]:
        """Give out the verdicts; returns who is still in prefill."""
        prefilling = []
        for envelope, outcome in zip(self._batch, result.outcomes, strict=True):
            if isinstance(outcome, Prefilling):
                prefilling.append(envelope)
            elif isinstance(outcome, FailedWork):
                envelope.fail(outcome.error)
            elif envelope.is_open:
                work = envelope.message
                self._expected[work.key] = now() + NEXT_ROUND_S, 1 + len(work.tree)
                envelope.answer(outcome)
        return prefilling


def _report(result: PassResult, elapsed_s: float, cycle_s: float) -> PassReport:
    verdicts = [outcome for outcome in result.outcomes if isinstance(outcome, VerificationResult)]
    return PassReport(
        num_rows=result.num_rows,
        elapsed_s=elapsed_s,
        cycle_s=cycle_s,
        num_tokens=sum(1 + len(verdict.path) for verdict in verdicts),
        is_prefill=any(isinstance(outcome, Prefilling) for outcome in result.outcomes),
    )


def _timed_step(
    engine: TargetEngine, works: list[VerifyWork], released: list[str]
) -> tuple[PassResult, float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    result = engine.step(works)
    return result, time.perf_counter() - start
