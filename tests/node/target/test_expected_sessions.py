"""A pass may wait for running sessions, but not for ended ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from edgecosine.balance.batch_wait import ExpectedArrival
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target.verifier import Verifier
from tests.node.links.wire_fixtures import run
from tests.node.target.test_verifier import LANGUAGE, Costs, Gate, holding, result, work
from tests.support.engines import ScriptedTarget


class Noting(Costs):
    """Records the expected arrivals."""

    def __init__(self, batch_wait_s: float = 0.0) -> None:
        super().__init__(batch_wait_s)
        self.waits: list[list[float]] = []

    def batch_wait_s(self, num_rows: int, arrivals: Sequence[ExpectedArrival]) -> float | None:
        self.waits.append([late.in_s for late in arrivals])
        return super().batch_wait_s(num_rows, arrivals)


@asynccontextmanager
async def batching(target: ScriptedTarget, costs: Costs) -> AsyncIterator[Verifier]:
    """A running verifier."""
    with EngineThread("target") as thread:
        verifier = Verifier(engine=target, thread=thread, max_batch=4, costs=costs)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(verifier.run())
            yield verifier
            running.cancel()


def test_session_with_a_result_is_expected_until_it_ends() -> None:
    async def main() -> None:
        async with holding(0.01, ScriptedTarget(LANGUAGE)) as (verifier, _):
            await verifier.verify(work("a"))
            assert "1 expected" in repr(verifier)
            verifier.release("a")
            assert "0 expected" in repr(verifier)
            verifier.expect("a", 0.1, 4)
            assert "0 expected" in repr(verifier)

    run(main())


@pytest.mark.parametrize("is_released_first", [True, False])
def test_session_cancelled_during_its_pass_is_not_expected(*, is_released_first: bool) -> None:
    """Its client leaves; the session releases its key at once, or in a moment."""

    async def main() -> None:
        gate = Gate()
        target = ScriptedTarget(LANGUAGE, before_pass=gate)
        async with batching(target, Costs()) as verifier, asyncio.TaskGroup() as group:
            leaver = group.create_task(verifier.verify(work("leaver")))
            await gate.reached()
            leaver.cancel()
            await asyncio.wait([leaver])
            if is_released_first:
                verifier.release("leaver")
            gate.open()
            assert await verifier.verify(work("stayer")) == result(work("stayer"))
            assert "1 expected" in repr(verifier)
            if not is_released_first:
                verifier.release("leaver")
            verifier.release("stayer")
            assert "0 expected" in repr(verifier)

    run(main())


def test_pass_does_not_wait_for_an_ended_session() -> None:
    async def main() -> None:
        async with holding(30.0, ScriptedTarget(LANGUAGE)) as (verifier, costs):
            await verifier.verify(work("gone"))
            verifier.release("gone")
            assert await verifier.verify(work("here")) == result(work("here"))
            assert not costs.is_holding.is_set()

    run(main())


def test_session_that_missed_its_time_is_not_waited_for_again() -> None:
    costs = Noting(batch_wait_s=0.01)

    async def main() -> None:
        async with batching(ScriptedTarget(LANGUAGE), costs) as verifier:
            await verifier.verify(work("late"))
            await verifier.verify(work("a"))
            await verifier.verify(work("a", 5))

    run(main())
    assert costs.waits[0][0] < 1.0
    assert costs.waits[-1] == [math.inf]
