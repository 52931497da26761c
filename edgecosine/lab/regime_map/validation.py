"""Measures cells of the map on real nodes with slowed engines, and compares the simulation."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecosine.lab.bench.cells import ALONE, OURS
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.lab.load_generator import closed_loop, make_jobs
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.lab.regime_map.cells import PASS_S, MapCell
from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.measure_costs import EngineCosts
from edgecosine.lab.simulation.run_simulation import costs_record
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.simulation.validation import calibrate

SITES = (
    (MapCell(8), MapCell(1)),
    (MapCell(8, rtt_ms=15.0), MapCell(1, rtt_ms=15.0)),
    (MapCell(8, ratio=0.4), MapCell(1, ratio=0.4)),
    (MapCell(8, ratio=0.05),),
    (MapCell(8, drafters=1),),
)
"""The cells that are measured on each cluster."""
POLICIES = (OURS, "specedge:groups=1,depth=4")
WITHIN = 0.15
"""Largest error of a simulated throughput that counts as near, as a share of the measured one."""
_SLOTS = 16


@dataclass(frozen=True, slots=True)
class MapValidation:
    """Size of a validation; core lists have the form of `edgecosine node --cores`."""

    repeats: int = 3
    requests: int = 16
    """Requests of a run with 8 at a time; a run with one at a time has a quarter of them."""
    max_tokens: int = 96
    network: NetworkKind = "auto"
    target_cores: str = ""
    drafter_cores: str = ""
    sites: tuple[tuple[MapCell, ...], ...] = SITES


async def validate_map(
    settings: MapValidation, costs: Costs, texts: Texts, notify: Notify, keep: Keep
) -> dict[str, Figure]:
    """Run the cells; returns the figures. Figures and records are saved after each cluster.

    Costs of event loops, links and clients are measured on the first cluster, the others are those
    of `costs`.

    Raises LabError and the errors of `lab_cluster`.
    """
    runs: list[dict[str, Any]] = []
    calibrated: Costs | None = None
    for cells in settings.sites:
        loads = _loads(settings, cells)
        async with lab_cluster(_plan(settings, cells[0]), notify) as cluster:
            if calibrated is None:
                calibrated = (await calibrate(cluster, _engines(costs), notify)).costs
            measured = [await _ask(cluster, load, notify) for load in loads]
        simulated = _simulate(cells, loads, calibrated, texts)
        runs += _records(cells, loads, measured, simulated)
        keep(validation_figures(runs), runs, costs=costs_record(calibrated))
    return validation_figures(runs)


def simulate_again(
    settings: MapValidation, costs: Costs, former: Sequence[dict[str, Any]], texts: Texts
) -> list[dict[str, Any]]:
    """The records of a former validation with new simulations and the former measurements.

    `settings` are those of the validation, `costs` those of its clusters.
    """
    measured = {(run["cell"], run["policy"]): run["measured_tokens_per_s"] for run in former}
    runs = []
    for cells in settings.sites:
        loads = _loads(settings, cells)
        simulated = _simulate(cells, loads, costs, texts)
        for run in _records(cells, loads, simulated, simulated):
            real = measured[run["cell"], run["policy"]]
            ratio = statistics.median(run["simulated_tokens_per_s"]) / statistics.median(real)
            runs.append({**run, "measured_tokens_per_s": real, "ratio": ratio})
    return runs


def _simulate(
    cells: Sequence[MapCell], loads: Sequence[SimulatedLoad], costs: Costs, texts: Texts
) -> list[float]:
    """Tokens per second of the loads on the lab's hardware: drafters, broker, traffic and clients
    share a processor. A slowed step computes as long as another one and sleeps for the rest."""
    slowed = costs.on_accelerators(PASS_S, costs.drafter_step(1))
    far_s = (cells[0].rtt_ms - MapCell().rtt_ms) / 2e3
    hardware = replace(
        slowed,
        step_s=costs.step_s,
        least_step_s=cells[0].ratio * PASS_S,
        one_way_s=costs.one_way_s + far_s,
    )
    scenario = Scenario(cells[0].models(), is_core_shared=True, has_device=True, slots=_SLOTS)
    return [outcome.tokens_per_s for outcome in simulate(scenario, loads, hardware, texts)]


def validation_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Simulated over measured throughput, and the number of runs that are within 15%."""
    ratios = [run["ratio"] for run in runs if run["kind"] == "map-validation"]
    if not ratios:
        return {}
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    return {
        "map_simulated_over_measured": interval(ratios),
        "map_runs_within_15_percent": counted(near, "runs"),
        "map_runs": counted(len(ratios), "runs"),
    }


def _loads(settings: MapValidation, cells: Sequence[MapCell]) -> list[SimulatedLoad]:
    """The loads of a cluster; each has prompts of its own until all prompts are used."""
    loads, first = [], 0
    policies = (ALONE, *POLICIES) if cells == SITES[0] else POLICIES
    for _, cell, policy in itertools.product(range(settings.repeats), cells, policies):
        share = 1 if cell.sessions > 1 else 4
        requests = max(1, settings.requests // share)
        loads.append(SimulatedLoad(policy, cell.sessions, requests, settings.max_tokens, first))
        first += requests
    return loads


def _plan(settings: MapValidation, cell: MapCell) -> LabPlan:
    slots = ("--slots", str(_SLOTS))
    return LabPlan(
        drafters=cell.models(),
        ballast=1,
        conditions=NetworkConditions(delay_ms=cell.rtt_ms / 2, rate_mbps=1000),
        network=settings.network,
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        target_options=(*slots, "--max-sessions", str(_SLOTS)),
        drafter_options=slots,
        least_pass_s=PASS_S,
        least_step_s=cell.ratio * PASS_S,
    )


def _engines(costs: Costs) -> EngineCosts:
    return EngineCosts(
        pass_s=dict(costs.pass_s),
        session_s=costs.session_s,
        step_s=dict(costs.step_s),
        work_s=costs.work_s,
        plan_s=dict(costs.plan_s),
    )


async def _ask(cluster: LabCluster, load: SimulatedLoad, notify: Notify) -> float:
    """Tokens per second on the real cluster."""
    jobs = make_jobs(
        load.requests, offset=load.first_text, policy=load.policy, temperature=0.0,
        max_tokens=load.max_tokens,
    )  # fmt: skip
    speed = (await closed_loop(cluster.client, jobs, load.sessions)).tokens_per_s
    notify(f"measured: {load.policy}, {load.sessions} at a time: {speed:.0f} tokens/s")
    return speed


def _records(
    cells: Sequence[MapCell],
    loads: Sequence[SimulatedLoad],
    measured: Sequence[float],
    simulated: Sequence[float],
) -> list[dict[str, Any]]:
    """A record for each cell and policy, with the medians of its repetitions."""
    records = []
    for cell in cells:
        for policy in dict.fromkeys(load.policy for load in loads):
            places = [
                place for place, load in enumerate(loads)
                if (load.policy, load.sessions) == (policy, cell.sessions)
            ]  # fmt: skip
            real, virtual = (
                [speeds[place] for place in places] for speeds in (measured, simulated)
            )
            records.append(
                {
                    "kind": "map-validation",
                    "cell": cell.name,
                    "policy": policy,
                    "measured_tokens_per_s": real,
                    "simulated_tokens_per_s": virtual,
                    "ratio": statistics.median(virtual) / statistics.median(real),
                }
            )
    return records
