"""`edgecosine bench simulation`: costs, validation in the lab, sweep and comparison."""

from __future__ import annotations

import asyncio
import itertools
import os
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
from edgecosine.lab.simulation.sweep import cells, middle, run_sweep, sweep_figures
from edgecosine.lab.simulation.texts import load_texts
from edgecosine.lab.simulation.validation import DRAFTERS, ValidationSettings, validate


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """Parts and repetitions; core lists have the form of `edgecosine node --cores`."""

    ballast: int = zoo.BALLAST
    seed: int = 0
    is_quick: bool = False
    is_validated: bool = False
    is_swept: bool = True
    sessions: tuple[int, ...] = ()
    """Numbers of sessions in the sweep; empty: its default ones."""
    is_compared: bool = False
    repeats: int = 3
    target_cores: str = ""
    drafter_cores: str = ""


def run_simulation_bench(
    settings: SimulationSettings, costs: Costs | None, notify: Notify, keep: Keep
) -> dict[str, Figure]:
    """Measure costs unless they are given, then validate, sweep and compare; returns the figures.

    Figures, records and costs are saved after each record. Costs of engines are measured in this
    process, those of loops and links on a cluster.

    Raises LabError and the errors of `lab_cluster`.
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
        todo = list(cells(is_quick=is_quick, only=settings.sessions))
        more = run_sweep(costs, texts, todo, seed=settings.seed, notify=notify)
    if settings.is_compared:
        more = itertools.chain(more, run_comparison(costs, is_quick=is_quick, notify=notify))
    keep(simulation_figures(runs), runs, costs=costs_record(costs))
    for record in more:
        runs.append(record)
        keep(simulation_figures(runs), runs, costs=costs_record(costs))
    return simulation_figures(runs)


def read_costs(record: Path) -> Costs:
    """The costs in a report of a former simulation.

    Raises LabError when the report has no costs.
    """
    try:
        held = msgspec.json.decode(record.read_bytes())["environment"]["costs"]
        return msgspec.convert(held, Costs, strict=False)
    except (KeyError, TypeError, msgspec.MsgspecError) as error:
        raise LabError(f"{record} has no costs of a simulation: {error}") from error


def simulation_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Simulated over measured throughput, the sweep, and the comparison of policies."""
    ratios = [run["ratio"] for run in runs if run["kind"] == "validation"]
    figures = {"simulated_over_measured": middle(ratios, "ratio")} if ratios else {}
    return figures | sweep_figures(runs) | comparison_figures(runs)


def costs_record(costs: Costs) -> dict[str, Any]:
    """The costs as JSON values."""
    return {name: value for name, value in asdict(costs).items() if value != {}}


def _validation(settings: SimulationSettings) -> ValidationSettings:
    """Settings of the validation; without validation, one cluster without loads, whose loop costs
    are measured."""
    whole = ValidationSettings(
        ballast=settings.ballast, repeats=1 if settings.is_quick else settings.repeats,
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
    )  # fmt: skip
    return whole if settings.is_validated else replace(whole, drafters=DRAFTERS[:1], sessions=())


def _on_core(settings: SimulationSettings, measure: Callable[[], EngineCosts]) -> EngineCosts:
    """Measure on the target's core, then restore the affinity of this process."""
    everywhere = os.sched_getaffinity(0)
    if settings.target_cores:
        os.sched_setaffinity(0, {int(settings.target_cores)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, everywhere)
