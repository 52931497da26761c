"""The simulation as a benchmark: costs, validation in the lab, sweep and comparison."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgecosine import zoo
from edgecosine.errors import LabError
from edgecosine.lab.figures import Figure, Keep, Notify
from edgecosine.lab.simulation.comparison import comparison_figures, run_comparison
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.measure_costs import EngineCosts, measure_engines
from edgecosine.lab.simulation.sweep import run_sweep
from edgecosine.lab.simulation.texts import load_texts
from edgecosine.lab.simulation.validation import DRAFTERS, ValidationSettings, validate


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """Parts and repetitions; core lists as for `edgecosine node`."""

    ballast: int = zoo.BALLAST
    seed: int = 0
    is_quick: bool = False
    is_validated: bool = False
    is_swept: bool = True
    is_compared: bool = False
    repeats: int = 3
    target_cores: str = ""
    drafter_cores: str = ""


def run_simulation_bench(
    settings: SimulationSettings, costs: Costs | None, notify: Notify, keep: Keep
) -> dict[str, Figure]:
    """Measure costs unless they are given, then validate, sweep and compare. Returns the figures;
    these, their records and the costs are saved after each record.

    Costs of engines are measured in this process, those of loops and links on a cluster.
    Raises LabError and what a cluster raises.
    """
    texts, runs = load_texts(), list[dict[str, Any]]()
    if settings.is_validated or costs is None:
        repeats = 3 if settings.is_quick else 9
        engines = _on_core(
            settings, lambda: measure_engines(texts, settings.ballast, repeats, notify)
        )
        runs, costs = asyncio.run(validate(_validation(settings), engines, texts, notify))
    more: Iterable[dict[str, Any]] = ()
    is_quick = settings.is_quick
    if settings.is_swept:
        more = run_sweep(costs, texts, is_quick=is_quick, seed=settings.seed, notify=notify)
    if settings.is_compared:
        more = itertools.chain(more, run_comparison(costs, is_quick=is_quick, notify=notify))
    keep(simulation_figures(runs), runs, costs=costs_record(costs))
    for record in more:
        runs.append(record)
        keep(simulation_figures(runs), runs, costs=costs_record(costs))
    return simulation_figures(runs)


def read_costs(record: Path) -> Costs:
    """The costs of a former record.

    Raises LabError when it has none.
    """
    try:
        held = msgspec.json.decode(record.read_bytes())["environment"]["costs"]
        return msgspec.convert(held, Costs, strict=False)
    except (KeyError, TypeError, msgspec.MsgspecError) as error:
        raise LabError(f"{record} has no costs of a simulation: {error}") from error


def simulation_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Simulated over measured throughput, time of decisions at 256 sessions, and the comparison of
    policies."""
    figures = {}
    ratios = [run["ratio"] for run in runs if run["kind"] == "validation"]
    if ratios:
        figures["simulated_over_measured"] = _range(ratios, "ratio")
    crowded = [run for run in runs if run["kind"] == "sweep" and run["sessions"] == 256]
    for name, key in _DECISIONS.items():
        shares = [100 * run[key] for run in crowded if run["drafters"]]
        if shares:
            figures[name] = _range(shares, "percent")
    return figures | comparison_figures(runs)


def _range(samples: Sequence[float], unit: str) -> Figure:
    """The median, with minimum and maximum in place of an interval."""
    middle = statistics.median(samples)
    return Figure(middle, min(samples), max(samples), unit, len(samples))


_DECISIONS = {
    "decision_percent_of_pass_256": "decision_over_pass",
    "all_decisions_percent_of_pass_256": "decisions_over_pass",
}
"""Decisions of one round, and of all rounds of a pass, at 256 sessions."""


def costs_record(costs: Costs) -> dict[str, Any]:
    """The costs as JSON values."""
    return {name: value for name, value in asdict(costs).items() if value != {}}


def _validation(settings: SimulationSettings) -> ValidationSettings:
    """Settings of the validation; without one, a cluster's loop costs are still measured."""
    whole = ValidationSettings(
        ballast=settings.ballast, repeats=1 if settings.is_quick else settings.repeats,
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
    )  # fmt: skip
    return whole if settings.is_validated else replace(whole, drafters=DRAFTERS[:1], sessions=())


def _on_core(settings: SimulationSettings, measure: Callable[[], EngineCosts]) -> EngineCosts:
    """Measure on the target's core, then restore the process's affinity."""
    everywhere = os.sched_getaffinity(0)
    if settings.target_cores:
        os.sched_setaffinity(0, {int(settings.target_cores)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, everywhere)
