"""A sweep from one drafter and session to hundreds of drafters and a thousand sessions, which
measures saturation of throughput and the cost of the target's own code."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecosine.lab.figures import Figure, Notify, counted
from edgecosine.lab.simulation.cluster import Outcome, Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.worker_pool import worker_pool

Hardware = Literal["here", "flat"]
"""here: passes have the measured cost, on the processor of the target's event loop; flat: passes
run on a separate device that is limited by memory bandwidth. A pass of up to FLAT_ROWS rows costs
as much as one row here, and a larger one proportionally more."""

FLAT_ROWS = 256
DRAFTERS = (1, 4, 16, 64, 256)
SESSIONS = (1, 8, 16, 64, 256, 1000)
QUICK_DRAFTERS = (1, 16)
QUICK_SESSIONS = (1, 8, 64)
_MAX_TOKENS = 128
_PER_SESSION = (12, 24)
"""Committed tokens per session at which counting starts and ends."""
_LEAST = (256, 2048)


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One point of the sweep; without drafters the target is alone."""

    hardware: Hardware
    drafters: int
    sessions: int
    targets: int = 1

    @property
    def policy(self) -> str:
        """The policy of the requests."""
        return "edgecosine" if self.drafters else "target-alone"


def cells(*, is_quick: bool, only: Sequence[int] = ()) -> Iterator[SweepCell]:
    """The points of the sweep, or those with one of the numbers of sessions in `only`."""
    drafters = QUICK_DRAFTERS if is_quick else DRAFTERS
    sessions = only or (QUICK_SESSIONS if is_quick else SESSIONS)
    kinds: tuple[Hardware, ...] = ("here", "flat")
    for hardware in kinds:
        for many in sessions:
            for number in (0, *drafters):
                # More drafters than the sessions can use give no further information.
                if hardware == "flat" or number <= 4 * many or number <= 16:
                    yield SweepCell(hardware, number, many)
        if 64 in sessions:
            yield SweepCell(hardware, 16, 64, targets=4)


def run_cell(cell: SweepCell, costs: Costs, texts: Texts, seed: int) -> dict[str, Any]:
    """Simulate one point; returns its record. `seed` is the number of the first prompt.

    Raises LabError when the recorded answers are too short.
    """
    models = tuple(texts.drafters[n % len(texts.drafters)] for n in range(cell.drafters))
    share = -(-cell.sessions // cell.targets)
    scenario = Scenario(
        models, slots=max(16, share), targets=cell.targets, has_device=cell.hardware == "flat"
    )
    low, high = (
        max(least, per * cell.sessions) for least, per in zip(_LEAST, _PER_SESSION, strict=True)
    )
    load = SimulatedLoad(
        cell.policy, cell.sessions, requests=1 << 30, max_tokens=_MAX_TOKENS, first_text=seed,
        window=(low, high),
    )  # fmt: skip
    started, computed = time.perf_counter(), time.thread_time()
    [outcome] = simulate(scenario, [load], on_hardware(cell.hardware, costs), texts)
    took_s = time.perf_counter() - started
    # Other load on this machine interrupts decisions as often as the rest.
    had_core = (time.thread_time() - computed) / took_s
    return {**_record(cell, outcome, had_core), "took_s": round(took_s, 2)}


def on_hardware(hardware: Hardware, costs: Costs) -> Costs:
    """The costs on a kind of hardware."""
    return costs if hardware == "here" else costs.with_flat_passes(FLAT_ROWS)


def _record(cell: SweepCell, outcome: Outcome, had_core: float) -> dict[str, Any]:
    targets_s = cell.targets * outcome.elapsed_s
    pass_s = outcome.pass_s / outcome.num_passes
    decision_s = had_core * outcome.decision_s / outcome.num_rounds
    per_pass = outcome.num_rounds / outcome.num_passes
    return {
        "kind": "sweep",
        "hardware": cell.hardware,
        "policy": cell.policy,
        "drafters": cell.drafters,
        "sessions": cell.sessions,
        "targets": cell.targets,
        "tokens_per_s": outcome.tokens_per_s,
        "tokens_per_round": outcome.tokens_per_round,
        "target_busy": outcome.pass_s / targets_s,
        "loop_share": outcome.loop_s / targets_s,
        "pass_ms": 1e3 * pass_s,
        "rows_per_pass": outcome.num_rows / outcome.num_passes,
        "rounds_per_pass": per_pass,
        "compared_per_round": outcome.num_compared / outcome.num_rounds,
        "messages_per_round": outcome.num_messages / outcome.num_rounds,
        "decision_us_per_round": 1e6 * decision_s,
        "decision_over_pass": decision_s / pass_s,
        "decisions_over_pass": decision_s * per_pass / pass_s,
        "decisions_us": {
            name: [count, 1e6 * had_core * seconds / max(1, count)]
            for name, (count, seconds) in sorted(outcome.decisions.items())
        },
    }


def run_sweep(
    costs: Costs, texts: Texts, todo: Sequence[SweepCell], *, seed: int, notify: Notify
) -> Iterator[dict[str, Any]]:
    """Yield a record for each point, in order; each processor simulates one point at a time."""
    call = functools.partial(run_cell, costs=costs, texts=texts, seed=seed)
    with worker_pool(min(len(todo), os.cpu_count() or 1)) as pool:
        for number, (cell, record) in enumerate(zip(todo, pool.map(call, todo), strict=True), 1):
            notify(
                f"[{number}/{len(todo)}] {cell.hardware}, {cell.drafters} drafters, "
                f"{cell.sessions} sessions, {cell.targets} targets: "
                f"{record['tokens_per_s']:.0f} tokens/s, target busy {record['target_busy']:.2f}, "
                f"its loop {record['loop_share']:.2f}, decisions "
                f"{record['decision_us_per_round']:.0f} us a round ({record['took_s']:.0f} s)"
            )
            yield record


def sweep_figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Figures of the points with one target.

    Ratios compare throughput with that of the target alone, on the same hardware and with the same
    number of sessions: the least ratio of all points, and of those with 16 sessions. The other
    figures are the time of decisions at 256 sessions.
    """
    swept = [run for run in runs if run["kind"] == "sweep" and run["targets"] == 1]
    alone = {_load(run): run["tokens_per_s"] for run in swept if not run["drafters"]}
    drafted = [run for run in swept if run["drafters"]]
    ratios = [(run["sessions"], run["tokens_per_s"] / alone[_load(run)]) for run in drafted]
    figures = {}
    for name, over in (
        ("sweep_over_target_alone_min", [ratio for _, ratio in ratios]),
        ("never_slower_16", [ratio for sessions, ratio in ratios if sessions == 16]),
    ):
        if over:
            figures[name] = counted(min(over), "ratio")
    for name, key in _DECISIONS.items():
        if shares := [100 * run[key] for run in drafted if run["sessions"] == 256]:
            figures[name] = middle(shares, "percent")
    return figures


def middle(samples: Sequence[float], unit: str) -> Figure:
    """The median, with minimum and maximum in place of an interval."""
    return Figure(statistics.median(samples), min(samples), max(samples), unit, len(samples))


def _load(run: Mapping[str, Any]) -> tuple[str, int]:
    return run["hardware"], run["sessions"]


_DECISIONS = {
    "decision_percent_of_pass_256": "decision_over_pass",
    "all_decisions_percent_of_pass_256": "decisions_over_pass",
}
"""Figures of the decisions of one round, and of all rounds of a pass, with their record fields."""
