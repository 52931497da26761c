"""The actor around the target engine: one batched forward pass for all sessions that are ready.

A session in prefill stays in the batch, chunk by chunk beside the rounds of others, until it has
its verification result. A pass waits a little for sessions that are expected soon, if that saves a
pass. If a pass fails, its works run one by one: a work that fails alone fails its session, unless
the engine then fails at every work.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Sequence
from typing import Protocol

from edgecosine.balance.batch_wait import ExpectedArrival
from edgecosine.balance.cost_model import PassReport
from edgecosine.engine.base import (
    BatchRule,
    FailedWork,
    KvUse,
    Outcome,
    Prefilling,
    StepResult,
    TargetEngine,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.target.pass_table import PassTable
from edgecosine.engine.target.profile import profile
from edgecosine.errors import ActorStopped, EngineError
from edgecosine.node.runtime.clock import now
from edgecosine.node.runtime.engine_thread import EngineThread, has_spare_core
from edgecosine.node.runtime.failures import cause_of
from edgecosine.node.runtime.mailbox import Envelope, Mailbox
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

logger = logging.getLogger(__name__)

NEXT_ROUND_S = 0.001
"""When a session with a result is expected again, unless it calls `expect`."""
GRACE_S = 0.001
"""How much later than expected a session may arrive at a pass that waits for it."""


_PROBE = VerifyWork("probe", (1,), 1, EMPTY_TREE, Sampling())
"""Succeeds on every engine that works."""


class PassCosts(Protocol):
    """Measures passes, and decides how long one waits for more sessions."""

    def observe_pass(self, report: PassReport) -> None:
        """Learn from a pass."""

    def pass_s(self, num_rows: int) -> float:
        """Expected time of a pass."""

    def worked_beside_s(self, moment: float) -> float:
        """Time until now in which drafters of the target's own machine had work."""

    def batch_wait_s(self, num_rows: int, arrivals: Sequence[ExpectedArrival]) -> float | None:
        """How long to delay a pass for expected arrivals; None to start it at once."""


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
        table: PassTable | None = None,
    ) -> None:
        self._engine, self._thread, self._max_batch = engine, thread, max_batch
        self._costs, self._table = costs, table
        self._mailbox: Mailbox[VerifyWork, VerificationResult] = Mailbox("verifier", 4 * max_batch)
        self._batch: list[Waiting] = []
        self._later: list[Waiting] = []
        """Works that their rules exclude from the present pass."""
        self._released: list[str] = []
        self._expected: dict[str, tuple[float, int, BatchRule | None]] = {}
        """When sessions with a result are expected again, with how many rows and which rule."""
        self.num_passes = 0
        self.busy_s = 0.0
        """Seconds in passes."""
        self.idle_s = 0.0
        """Seconds between passes."""
        self.last_pass_s = 0.0
        """Seconds of the latest pass."""
        self.has_failed = False
        """Whether the engine failed; any of the works may have caused it."""
        self._ended = 0.0
        self._begun: asyncio.Future[None] | None = None
        """Of the session that waits for the begin of its pass."""

    def __repr__(self) -> str:
        waiting, expected = len(self._mailbox), len(self._expected)
        return f"<Verifier [{waiting} waiting, {expected} expected, {self.num_passes} passes]>"

    @property
    def num_held(self) -> int:
        """Works that wait for a pass or are in one."""
        return len(self._mailbox) + len(self._batch) + len(self._later)

    @property
    def is_beside_loop(self) -> bool:
        """Whether the event loop may run during passes without delaying them."""
        return has_spare_core()

    @property
    def kv_use(self) -> KvUse:
        """The use of the engine's KV cache."""
        return self._engine.kv_use

    async def verify(self, work: VerifyWork) -> VerificationResult:
        """The verification result of a tree.

        Raises ActorStopped when the engine has ended, and the engine's error with this work alone.
        """
        return await self.submit(work)

    def submit(self, work: VerifyWork) -> asyncio.Future[VerificationResult]:
        """The future of `verify`; cancelling it takes the work back, unless its pass has begun."""
        return self._mailbox.post(work)

    async def begun(self, verification: asyncio.Future[VerificationResult]) -> None:
        """Wait until the pass of a work has begun, or its future is done: until then the engine's
        thread needs the interpreter, which the event loop would keep. For one session at a time."""
        self._begun = begun = asyncio.get_running_loop().create_future()
        verification.add_done_callback(lambda _: self._note_begun())
        await begun

    def _note_begun(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None and not begun.done():
            begun.set_result(None)

    def expect(self, key: str, in_s: float, num_rows: int) -> None:
        """The session is expected in `in_s` seconds, with about `num_rows` rows."""
        if key in self._expected:
            self._expected[key] = (now() + in_s, num_rows, self._expected[key][2])

    def release(self, key: str) -> None:
        """The session has ended; its KV slot is freed before the next pass."""
        self._expected.pop(key, None)
        self._released.append(key)

    async def run(self) -> None:
        """Profile passes, then run them until cancelled.

        Raises EngineError when the engine has failed.
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
            for envelope in (*self._batch, *self._later):
                envelope.fail(ActorStopped("the verifier has stopped"))

    async def _gather_batch(self) -> None:
        """Collect the works in prefill, those that have arrived, and those worth a wait.

        A work enters the batch at once, so that it fails with the others if the actor ends.
        """
        ends = math.inf
        self._batch, self._later = [*self._later, *self._batch], []
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
        self._hold_back()
        for envelope in self._batch:
            self._expected.pop(envelope.message.key, None)

    def _hold_back(self) -> None:
        """Leave the works for later that the rule of the oldest one excludes."""
        rule = self._rule
        ready = [each for each in self._batch if each.message.batching == rule]
        if rule is not None:
            rows = [self._num_rows(each.message) for each in ready]
            ready = [ready[place] for place in rule.choose(rows, self._costs.pass_s)]
        chosen = {id(each) for each in ready}
        self._later = [each for each in self._batch if id(each) not in chosen]
        self._batch = ready

    @property
    def _rule(self) -> BatchRule | None:
        return self._batch[0].message.batching if self._batch else None

    def _batch_wait_s(self, moment: float) -> float | None:
        here = {envelope.message.key for envelope in self._batch}
        arrivals = [
            ExpectedArrival(at - moment, num_rows)
            for key, (at, num_rows, rule) in self._expected.items()
            if key not in here and rule == self._rule
        ]
        if not arrivals or len(self._batch) == self._max_batch:
            return None
        num_rows = sum(self._num_rows(envelope.message) for envelope in self._batch)
        return self._costs.batch_wait_s(num_rows, arrivals)

    def _num_rows(self, work: VerifyWork) -> int:
        is_prefill = work.key not in self._expected
        return 1 + len(work.tree) + (len(work.tokens) if is_prefill else 0)

    def _give_up(self, until: float) -> None:
        """Sessions that missed their expected time are not waited for again."""
        here = {envelope.message.key for envelope in self._batch}
        for key, (at, num_rows, rule) in self._expected.items():
            if key not in here and at <= until:
                self._expected[key] = math.inf, num_rows, rule

    async def _pass(self) -> StepResult:
        works = [envelope.message for envelope in self._batch]
        released, self._released = self._released, []
        worked_s = self._costs.worked_beside_s(now())
        try:
            result, elapsed_s = await self._run_engine(works, released)
        except EngineError:
            self.has_failed = True
            raise
        except Exception as error:  # noqa: BLE001 -- any work may be its cause
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
            beside_s = self._costs.worked_beside_s(ended) - worked_s
            self._costs.observe_pass(_report(works, result, elapsed_s, cycle_s, beside_s))
        return result

    async def _one_by_one(self, works: list[VerifyWork], error: Exception) -> StepResult:
        """Run the works of a pass that failed with `error`, each in a pass of its own.

        Raises EngineError if the engine fails at a trivial work, too.
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
                raise EngineError(f"the engine has failed: {reason}")
        return StepResult(outcomes, 0)

    async def _alone(self, work: VerifyWork) -> Outcome:
        try:
            result, _ = await self._run_engine([work], [])
        except EngineError:
            self.has_failed = True
            raise
        except Exception as error:  # noqa: BLE001 -- this work is its cause
            return FailedWork(error)
        return result.outcomes[0]

    async def _profile(self) -> dict[int, float]:
        return await self._thread.run(functools.partial(profile, self._engine, self._table))

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[StepResult, float]:
        call = functools.partial(_timed_step, self._engine, works, released)
        return await self._thread.run(call, self._note_begun if self._begun else None)

    def _settle(self, result: StepResult) -> list[Waiting]:
        """Deliver the results; returns the works that are still in prefill."""
        prefilling = []
        for envelope, outcome in zip(self._batch, result.outcomes, strict=True):
            if isinstance(outcome, Prefilling):
                prefilling.append(envelope)
            elif isinstance(outcome, FailedWork):
                envelope.fail(outcome.error)
            elif isinstance(outcome, VerificationResult) and envelope.is_open:
                work = envelope.message
                self._expected[work.key] = (
                    now() + NEXT_ROUND_S, 1 + len(work.tree), work.batching,
                )  # fmt: skip
                envelope.answer(outcome)
        return prefilling


def _report(
    works: Sequence[VerifyWork],
    result: StepResult,
    elapsed_s: float,
    cycle_s: float,
    beside_s: float,
) -> PassReport:
    verified = [outcome for outcome in result.outcomes if isinstance(outcome, VerificationResult)]
    num_accepted = sum(len(outcome.path) for outcome in verified)
    return PassReport(
        num_rows=result.num_rows,
        elapsed_s=elapsed_s,
        cycle_s=cycle_s,
        num_tokens=len(verified) + num_accepted,
        num_accepted=num_accepted,
        num_prompt_rows=result.num_rows - _num_decoding(works, result),
        beside_s=beside_s,
    )


def _num_decoding(works: Sequence[VerifyWork], result: StepResult) -> int:
    """Rows of trees and their roots; a work in prefill has none."""
    return sum(
        1 + len(work.tree)
        for work, outcome in zip(works, result.outcomes, strict=True)
        if isinstance(outcome, VerificationResult)
    )


def _timed_step(
    engine: TargetEngine, works: list[VerifyWork], released: list[str]
) -> tuple[StepResult, float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    result = engine.step(works)
    return result, time.perf_counter() - start
