"""The GPU benchmark runs anywhere on small shapes; without a GPU the command reports that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from edgecosine import zoo
from edgecosine.cli.bench import command
from edgecosine.engine.base import StepResult, TargetEngine, VerificationResult, VerifyWork
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.bench.run_gpu import run_gpu_bench, toy_settings
from edgecosine.lab.exactness.divergence import count_diverging
from edgecosine.lab.figures import write_report


def test_benchmark_measures_small_shapes_on_a_cpu(tmp_path: Path) -> None:
    messages: list[str] = []
    runs: list[dict[str, Any]] = []
    kept: list[int] = []

    def keep(_: object, measured: Sequence[dict[str, Any]], **__: object) -> None:
        runs[:] = measured
        kept.append(len(measured))

    figures = run_gpu_bench(toy_settings("cpu"), messages.append, keep)
    assert len({*kept}) > 1
    for kind in ("decode_1x1", "verify_1x8", "verify_8x4", "verify_8x8"):
        assert figures[f"tiny_{kind}_ms"].value > 0
        assert figures[f"tiny_eager_{kind}_ms"].value > 0
        assert figures[f"tiny_{kind}_over_floor"].value > 0
    assert figures["drafter_none_step_ms"].value > 0
    assert figures["answers_checked"].value == 4
    write_report(tmp_path / "gpu.json", figures, runs, device="cpu")
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert len(written["figures"]) == len(figures)


class _Forgetful:
    """Generates other tokens once there is a tree."""

    def __init__(self, engine: TargetEngine) -> None:
        self._engine = engine
        self.max_context, self.release = engine.max_context, engine.release

    def step(self, batch: list[VerifyWork]) -> StepResult:
        result = self._engine.step(batch)
        outcomes = [
            VerificationResult(outcome.path, outcome.bonus ^ 1)
            if isinstance(outcome, VerificationResult) and len(work.tree) and work.key == "1"
            else outcome
            for work, outcome in zip(batch, result.outcomes, strict=True)
        ]
        return StepResult(outcomes, result.num_rows)


def test_divergence_is_counted() -> None:
    options = LoadOptions(zoo.drafter_names()[0], threads=1, slots=8, context=128, device="cpu")
    engine, loaded = load_target(options)
    prompts = [[5 + i, 9, 11 + i, 40] for i in range(4)]
    if loaded.exactness == "bitwise":
        assert count_diverging(engine, prompts, 20) == 0
    assert count_diverging(_Forgetful(engine), prompts, 20) >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_command_reports_a_missing_gpu() -> None:
    result = CliRunner().invoke(command, ["gpu"])
    assert result.exit_code == 1
    assert "CUDA device" in result.output
