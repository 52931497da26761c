"""The benchmark's record on disk. It is written after every run, so that an interrupted benchmark
can be resumed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import Step
from edgecosine.lab.bench.figures import bench_figures, best_latency, best_throughput
from edgecosine.lab.bench.table import read_report
from edgecosine.lab.figures import Figure, machine, write_report

_MUST_AGREE = ("commit", "dirty", "cpu", "cpu_units", "settings")


class BenchReport:
    """The runs so far, and their file. Without a path they are only held in memory."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        # As decoded from the file, where a tuple is a list.
        decoded = msgspec.json.decode(msgspec.json.encode(dict(settings)))
        self._environment: dict[str, Any] = {**machine(), "settings": decoded}
        self.runs: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        """Notes of the environments, by site."""

    def resume(self) -> None:
        """Load the runs of the file, if there is one.

        Raises LabError when it was measured with other settings, code or hardware.
        """
        if self._path is None or not self._path.exists():
            return
        former = read_report(self._path)
        for key in _MUST_AGREE:
            there, here = former["environment"].get(key), self._environment[key]
            if there != here:
                raise LabError(f"{self._path} has another {key}: {there} there, {here} here")
        self.runs = former["runs"]
        self.notes = former["environment"].get("notes", {})

    def has(self, step: Step) -> bool:
        """Whether a run is in the record already."""
        place = (step.cell.name, step.policy, step.repeat)
        return any((run["cell"], run["policy"], run["repeat"]) == place for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Add a run and write the record."""
        self.runs.append(run)
        self.write()

    def figures(self) -> dict[str, Figure]:
        """The figures of the runs so far."""
        return bench_figures(self.runs)

    def write(self) -> None:
        """Write the record, if there is a path."""
        if self._path is None:
            return
        best = {
            "throughput": best_throughput(self.runs, "eight"),
            "latency": best_latency(self.runs, "eight"),
        }
        environment = {**self._environment, "notes": self.notes, "best_baseline_8": best}
        write_report(self._path, self.figures(), self.runs, **environment)


def seconds_left(done: Sequence[Mapping[str, Any]], todo: Sequence[Step]) -> float | None:
    """Estimated seconds of the remaining runs; None before the first run.

    The estimate of a run is the mean of the same run in former repetitions, otherwise of the runs
    of its cell, otherwise of all runs.
    """
    if not done:
        return None
    seconds: list[float] = [run["took_s"] for run in done]
    by_cell: dict[str, list[float]] = {}
    by_run: dict[tuple[str, str], list[float]] = {}
    for run, took_s in zip(done, seconds, strict=True):
        by_cell.setdefault(run["cell"], []).append(took_s)
        by_run.setdefault((run["cell"], run["policy"]), []).append(took_s)
    alike = (
        by_run.get((step.cell.name, step.policy)) or by_cell.get(step.cell.name) or seconds
        for step in todo
    )
    return sum(map(statistics.fmean, alike))
