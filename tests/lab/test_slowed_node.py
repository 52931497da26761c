"""Slowed nodes of the lab: each pass and each step lasts at least as long as was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from edgecosine.engine.base import DraftResult, DraftWork, StepResult, never
from edgecosine.lab.slowed_command import slowed
from edgecosine.lab.slowed_node import SlowedDrafter, SlowedTarget

LEAST_S = 0.01


class QuickEngine:
    """Takes no time; drafts until it is awaited, in three steps at most."""

    max_context = 64

    def __init__(self) -> None:
        self.num_steps = 0

    def step(self, batch: Sequence[Any]) -> StepResult:
        return StepResult([], len(batch))

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        for _ in range(3):
            self.num_steps += 1
            if is_interrupted(0):
                break
        return []

    def release(self, key: str) -> None:
        pass


def spent_s(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_passes_and_steps_last_at_least_as_long_as_asked() -> None:
    target = SlowedTarget(cast(Any, QuickEngine()), LEAST_S)
    assert spent_s(lambda: target.step([])) >= LEAST_S
    assert target.max_context == QuickEngine.max_context
    drafter = SlowedDrafter(QuickEngine(), LEAST_S)
    assert spent_s(lambda: drafter.draft([])) >= 3 * LEAST_S


def test_slowed_drafter_ends_early_when_it_is_interrupted() -> None:
    engine = QuickEngine()
    SlowedDrafter(engine, LEAST_S).draft([], lambda _: True)
    assert engine.num_steps == 1


def test_only_slowed_nodes_run_the_labs_program() -> None:
    command = ("python", "-m", "edgecosine", "node", "--role", "drafter")
    assert slowed(command, 0.0) == command
    assert slowed(command, 0.25) == (
        "python", "-m", "edgecosine.lab.slowed_node", "0.25", "node", "--role", "drafter",
    )  # fmt: skip
