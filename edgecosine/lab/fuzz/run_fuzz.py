"""Coverage-guided fuzzing of one target after another; reports progress and failures."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine.errors import LabError
from edgecosine.lab.figures import Figure, Notify, counted
from edgecosine.lab.fuzz.targets import TARGETS

_TIMEOUT_S: Final = 10
"""An input that takes longer counts as a hang."""
_MEMORY_MB: Final = 1024
_REPORT_S: Final = 10.0
_SHOWN_BYTES: Final = 4096
_PROGRESS: Final = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_STATISTIC: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_ARTIFACT: Final = re.compile(r"Test unit written to (\S+)")
_REASON: Final = re.compile(r"(?:^\w*(?:Error|Exception|Broken)\b.*)|(?:ERROR: libFuzzer: .*)")


@dataclass(frozen=True, slots=True)
class FuzzSettings:
    """Targets and limits of fuzzing; `inputs` and `seconds` are divided among the targets.

    seed    seed of the first target
    corpus  folder of inputs to start from and to add to; None: a temporary one
    """

    targets: tuple[str, ...]
    inputs: int
    seconds: float | None
    seed: int
    corpus: Path | None


@dataclass(slots=True)
class FuzzRun:
    """The result of one target. `broken` is its failure, `broken_by` the start of the failing input
    in hexadecimal."""

    target: str
    inputs: int = 0
    wall_s: float = 0.0
    edges: int = 0
    """Reached edges of the control flow."""
    features: int = 0
    corpus: int = 0
    peak_rss_mb: int = 0
    slowest_input_s: int = 0
    broken: str | None = None
    broken_by: str = ""


def run_fuzz(settings: FuzzSettings, notify: Notify) -> list[FuzzRun]:
    """Fuzz one target after another; returns their results in the same order.

    Raises LabError when atheris is not installed.
    """
    if importlib.util.find_spec("atheris") is None:
        raise LabError("fuzzing needs atheris: pip install 'edgecosine[fuzz]'")
    with tempfile.TemporaryDirectory(prefix="edgecosine-fuzz-") as scratch:
        return [
            _fuzz(name, number, settings, settings.corpus or Path(scratch), notify)
            for number, name in enumerate(settings.targets)
        ]


def figures_of(runs: Sequence[FuzzRun]) -> dict[str, Figure]:
    """Number of inputs, their rate, and number of failed targets."""
    inputs, wall_s = sum(run.inputs for run in runs), sum(run.wall_s for run in runs)
    values = {
        "fuzzed_inputs": (inputs, "inputs"),
        "fuzzed_inputs_per_s": (inputs / wall_s if wall_s else 0.0, "1/s"),
        "fuzz_findings": (sum(run.broken is not None for run in runs), "targets"),
    }
    return {name: counted(value, unit) for name, (value, unit) in values.items()}


def _fuzz(name: str, number: int, settings: FuzzSettings, folder: Path, notify: Notify) -> FuzzRun:
    corpus = folder / name
    findings = folder / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    share = len(settings.targets)
    command = [
        sys.executable, "-m", "edgecosine.lab.fuzz.worker", name, str(corpus),
        f"-runs={-(-settings.inputs // share)}", f"-seed={settings.seed + number + 1}",
        f"-max_len={target.max_bytes}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}",
        f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1", "-len_control=0",
        *([] if settings.seconds is None else [f"-max_total_time={int(settings.seconds / share)}"]),
    ]  # fmt: skip
    run = FuzzRun(name)
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as worker:
        assert worker.stdout is not None
        last_line = _read(worker.stdout, run, started, notify)
    run.wall_s = time.perf_counter() - started
    if worker.returncode and run.broken is None:
        run.broken = last_line or f"the worker ended with exit code {worker.returncode}"
    notify(_line(run))
    return run


def _read(lines: Iterator[str], run: FuzzRun, started: float, notify: Notify) -> str:
    """Read the worker's output; returns its last line."""
    last_report, line = started, ""
    for line in lines:
        if found := _PROGRESS.search(line):
            run.inputs, run.edges, run.features, run.corpus = map(int, found.groups())
        elif found := _STATISTIC.search(line):
            _set_statistic(run, found[1], int(found[2]))
        elif found := _ARTIFACT.search(line):
            run.broken_by = Path(found[1]).read_bytes()[:_SHOWN_BYTES].hex()
        elif run.broken is None and (found := _REASON.search(line)):
            run.broken = found[0].strip()
        now = time.perf_counter()
        run.wall_s = now - started
        if now - last_report >= _REPORT_S:
            last_report = now
            notify(_line(run))
    return line.strip()


def _set_statistic(run: FuzzRun, name: str, value: int) -> None:
    match name:
        case "number_of_executed_units":
            run.inputs = value
        case "peak_rss_mb":
            run.peak_rss_mb = value
        case "slowest_unit_time_sec":
            run.slowest_input_s = value


def _line(run: FuzzRun) -> str:
    speed = run.inputs / run.wall_s if run.wall_s else 0.0
    failure = f"; FAILED: {run.broken} by {run.broken_by[:200]}" if run.broken else ""
    return (
        f"{run.target}: {run.inputs:,} inputs, {speed:,.0f}/s, {run.edges} edges, "
        f"{run.corpus} kept{failure}"
    )
