"""The benchmark: makes all runs in order, in the environments that they need, and records them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from edgecosine.lab.bench.cells import Cell, Step
from edgecosine.lab.bench.report import BenchReport, seconds_left
from edgecosine.lab.figures import Notify


class Environment(Protocol):
    """Makes the runs of a cell."""

    @property
    def notes(self) -> Mapping[str, Any]:
        """Notes for the record."""

    async def play(self, step: Step) -> dict[str, Any]:
        """Make one run; returns its record."""


OpenEnvironment = Callable[[Cell], AbstractAsyncContextManager[Environment]]
"""Opens a fresh environment for a cell."""


async def run_bench(
    steps: Sequence[Step], open_environment: OpenEnvironment, report: BenchReport, notify: Notify,
    *, keeps_clusters: bool = False,
) -> None:  # fmt: skip
    """Make all runs that the report lacks, and save each when it ends.

    With `keeps_clusters` the repetitions of a cell share an environment, except those with hostile
    drafters, whose behaviour changes over time.

    Raises the errors of the environments.
    """
    todo = [step for step in steps if not report.has(step)]
    if len(todo) < len(steps):
        notify(f"resuming: {len(steps) - len(todo)} of {len(steps)} runs are recorded already")
    number = len(steps) - len(todo)

    def environment_of(step: Step) -> tuple[Cell, int]:
        is_kept = keeps_clusters and step.cell.site != "hostile"
        return step.cell, 0 if is_kept else step.repeat

    for (cell, _), group in itertools.groupby(todo, key=environment_of):
        async with open_environment(cell) as environment:
            report.notes |= {cell.name: dict(environment.notes)}
            for step in group:
                started = time.perf_counter()
                run = await environment.play(step)
                number += 1
                report.add({**run, "took_s": round(time.perf_counter() - started, 3)})
                left_s = seconds_left(report.runs, todo[number - len(steps) + len(todo) :])
                notify(f"[{number}/{len(steps)}] {_line(step, run)}; {_left(left_s)}")


def _line(step: Step, run: Mapping[str, Any]) -> str:
    latency_s = run["latency_s"]["mean"]
    parts = [
        f"{step.cell.name}, repetition {step.repeat + 1}, {step.policy}: "
        f"{run['tokens_per_s']:.0f} tokens/s",
        "no answers" if latency_s is None else f"{latency_s:.2f} s each",
        f"{run['acceptance_length']:.2f} accepted a round",
    ]
    if run["refused"]:
        parts.append(f"{len(run['refused'])} refused")
    return ", ".join(parts)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes = seconds / 60
    return f"{seconds:.0f} s left" if minutes < 2 else f"about {minutes:.0f} min left"
