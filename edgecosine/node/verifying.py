"""The actor around the target engine: one batched pass for all sessions that are ready.

It knows batches and passes, not drafts nor users. A session in prefill stays in the batch, chunk by
chunk beside the others' rounds, until its own verdict is there.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

from edgecosine.engine.base import (
    PassResult,
    Prefilling,
    TargetEngine,
    Verdict,
    VerifyWork,
)
from edgecosine.engine.profile import profile
from edgecosine.errors import ActorStopped
from edgecosine.node.clock import now
from edgecosine.node.engine_thread import EngineThread
from edgecosine.node.mailbox import Envelope, Mailbox

ObservePass = Callable[[int, float], None]
"""Called after each pass with its rows and its seconds."""

Waiting = Envelope[VerifyWork, Verdict]


class Verifying:
    """Batches sessions' works into passes."""

    def __init__(
        self,
        *,
        engine: TargetEngine,
        thread: EngineThread,
        max_batch: int,
        observe_pass: ObservePass,
    ) -> None:
        self._engine, self._thread, self._max_batch = engine, thread, max_batch
        self._observe_pass = observe_pass
        self._mailbox: Mailbox[VerifyWork, Verdict] = Mailbox("verifying", 4 * max_batch)
        self._batch: list[Waiting] = []
        self._released: list[str] = []
        self.num_passes = 0
        self.busy_s = 0.0
        """Seconds in passes."""
        self.idle_s = 0.0
        """Seconds between the end of each pass and that of the next one, outside of it."""
        self.last_pass_s = 0.0
        """Seconds of the pass that gave the latest verdicts."""
        self._ended = 0.0

    def __repr__(self) -> str:
        return f"<Verifying [{len(self._mailbox)} waiting, {self.num_passes} passes]>"

    async def verify(self, work: VerifyWork) -> Verdict:
        """The target's verdict on a tree.

        Raises ActorStopped when the engine has ended.
        """
        return await self._mailbox.ask(work)

    def release(self, key: str) -> None:
        """The session has ended; its slot is given back before the next pass."""
        self._released.append(key)

    async def run(self) -> None:
        """Measure what passes cost, then run them as long as there are works."""
        try:
            for num_rows, elapsed_s in (await self._profile()).items():
                self._observe_pass(num_rows, elapsed_s)
            self._ended = now()
            while True:
                self._batch = await self._next_batch()
                result = await self._pass()
                self._batch = self._settle(result)
        finally:
            self._mailbox.close()
            for envelope in self._batch:
                envelope.fail(ActorStopped("verifying has stopped"))

    async def _next_batch(self) -> list[Waiting]:
        """The works still in prefill, and those that came meanwhile."""
        prefilling = [envelope for envelope in self._batch if envelope.is_open]
        room = self._max_batch - len(prefilling)
        if prefilling:
            await asyncio.sleep(0)  # whoever just got a verdict asks again in this turn of the loop
            return prefilling + self._mailbox.take_nowait(room)
        return await self._mailbox.take(room)

    async def _pass(self) -> PassResult:
        works = [envelope.message for envelope in self._batch]
        released, self._released = self._released, []
        result, elapsed_s = await self._run_engine(works, released)
        self.num_passes += 1
        ended = now()
        self.busy_s += elapsed_s
        self.idle_s += ended - self._ended - elapsed_s
        self._ended, self.last_pass_s = ended, elapsed_s
        self._observe_pass(result.num_rows, elapsed_s)
        return result

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
            else:
                envelope.answer(outcome)
        return prefilling


def _timed_step(
    engine: TargetEngine, works: list[VerifyWork], released: list[str]
) -> tuple[PassResult, float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    result = engine.step(works)
    return result, time.perf_counter() - start
