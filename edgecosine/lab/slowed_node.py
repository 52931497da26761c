"""`python -m edgecosine.lab.slowed_node SECONDS node …`: a node of the lab whose engine is slowed.

Each forward pass of a target and each step of a drafter takes at least SECONDS. The engine's thread
sleeps for the rest, so several slowed nodes on one processor behave like separate slow machines.
The runtime itself has no such option: this program replaces its two loaders.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgecosine.engine.base import (
    DraftEngine,
    DraftResult,
    DraftWork,
    MemberEngine,
    StepResult,
    VerifyWork,
    never,
)
from edgecosine.engine.loading import load
from edgecosine.engine.options import Loaded, LoadOptions


class SlowedTarget:
    """A target engine whose passes take at least `least_s`."""

    def __init__(self, engine: MemberEngine, least_s: float) -> None:
        self._engine, self._least_s = engine, least_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        """`TargetEngine.step`."""
        ends = time.perf_counter() + self._least_s
        result = self._engine.step(batch)
        _sleep_until(ends)
        return result


class SlowedDrafter:
    """A draft engine whose steps take at least `least_s`."""

    def __init__(self, engine: DraftEngine, least_s: float) -> None:
        self._engine, self._least_s = engine, least_s

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        """`DraftEngine.draft`; an engine calls `is_interrupted` after every step."""
        ends = time.perf_counter() + self._least_s

        def after_step(num_complete: int) -> bool:
            nonlocal ends
            _sleep_until(ends)
            ends = time.perf_counter() + self._least_s
            return is_interrupted(num_complete)

        return self._engine.draft(batch, after_step)

    def release(self, key: str) -> None:
        """`DraftEngine.release`."""
        self._engine.release(key)


def _sleep_until(ends: float) -> None:
    time.sleep(max(0.0, ends - time.perf_counter()))


def _slow_loaders(least_s: float) -> None:
    load_target, load_drafter = load.load_target, load.load_drafter

    def slow_target(options: LoadOptions) -> tuple[MemberEngine, Loaded]:
        engine, loaded = load_target(options)
        return SlowedTarget(engine, least_s), loaded

    def slow_drafter(options: LoadOptions) -> tuple[DraftEngine, Loaded]:
        engine, loaded = load_drafter(options)
        return SlowedDrafter(engine, least_s), loaded

    load.load_target, load.load_drafter = slow_target, slow_drafter


if __name__ == "__main__":
    _slow_loaders(float(sys.argv.pop(1)))
    runpy.run_module("edgecosine", run_name="__main__")
