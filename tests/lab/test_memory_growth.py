"""A memory leak is detected, and the engine has none."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from edgecosine import zoo
from edgecosine.engine.base import StepResult, TargetEngine, VerifyWork
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.bench.run_engine import grown_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


class _Leaking:
    """A target that leaks 100 KiB in each pass."""

    def __init__(self, engine: TargetEngine) -> None:
        self._engine, self._lost = engine, list[bytes]()
        self.max_context, self.release = engine.max_context, engine.release

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        self._lost.append(b"x" * 100 * 1024)
        return self._engine.step(batch)


def test_memory_does_not_grow_over_rounds_and_a_leak_would_show() -> None:
    options = LoadOptions(zoo.drafter_names()[0], threads=1, slots=2, context=512, device="cpu")
    engine, _ = load_target(options)
    prompt = [5 + i % 50 for i in range(192)]
    assert grown_memory(engine, prompt, 200).value < 4
    assert grown_memory(_Leaking(engine), prompt, 200).value > 15
