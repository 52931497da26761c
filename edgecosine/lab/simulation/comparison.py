"""Compares all policies on simulated clusters in which each drafter has its own processor.

Every run has a fresh cluster, so that no policy profits from another's statistics.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgecosine.balance.policy import BASELINES, PARTS
from edgecosine.lab.bench.cells import ALONE, COLOCATED, GENERALIST, OURS, WITH_COPIES
from edgecosine.lab.bench.figures import best_latency, best_throughput, latency_s, ratios
from edgecosine.lab.figures import Figure, Notify, interval
from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.sweep import Hardware, on_hardware
from edgecosine.lab.simulation.texts import RECORDED, ZOO, Texts, load_texts

Runs = Sequence[dict[str, Any]]

POLICIES = (
    OURS,
    *(policy for policy in BASELINES if policy != COLOCATED),
    *(f"{OURS}-without-{part}" for part in PARTS),
)
_REQUESTS = 16
_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """One condition under which all policies are compared."""

    hardware: Hardware
    sessions: int
    temperature: float

    @property
    def name(self) -> str:
        """Name in the figures."""
        return f"{self.hardware}_{self.sessions}{'_sampled' if self.temperature else ''}"


CELLS = (
    ComparisonCell("flat", 1, 0.0), ComparisonCell("flat", 8, 0.0), ComparisonCell("flat", 1, 0.8),
    ComparisonCell("flat", 8, 0.8), ComparisonCell("here", 1, 0.0), ComparisonCell("here", 8, 0.0),
)  # fmt: skip
SEEDS = (0, 16, 32)
"""Numbers of the first prompts of the repetitions, whose prompts differ."""


def run_comparison(costs: Costs, *, is_quick: bool, notify: Notify) -> Iterator[dict[str, Any]]:
    """Yield a record for each policy, condition and repetition.

    Raises LabError when the recorded answers are too short.
    """
    texts = {temperature: load_texts(temperature) for temperature in RECORDED[ZOO]}
    for cell in CELLS[:2] if is_quick else CELLS:
        for policy in POLICIES:
            found = [
                run_policy(cell, policy, seed, costs, texts[cell.temperature])
                for seed in (SEEDS[:1] if is_quick else SEEDS)
            ]
            yield from found
            speeds = ", ".join(f"{record['tokens_per_s']:.0f}" for record in found)
            notify(f"{cell.name}, {policy}: {speeds} tokens/s")


def run_policy(
    cell: ComparisonCell, policy: str, seed: int, costs: Costs, texts: Texts
) -> dict[str, Any]:
    """Run one policy on a cluster of its own; returns its record.

    The cluster has all recorded drafters. For baselines with a single model it has the same number
    of copies of the generalist.

    Raises LabError when the recorded answers are too short.
    """
    models = texts.drafters
    if policy in WITH_COPIES:
        models = (GENERALIST,) * len(models)
    scenario = Scenario(models, has_device=cell.hardware == "flat")
    load = SimulatedLoad(
        policy, cell.sessions, max(_REQUESTS, 2 * cell.sessions), _MAX_TOKENS, seed
    )
    [outcome] = simulate(scenario, [load], on_hardware(cell.hardware, costs), texts)
    return {
        "kind": "comparison",
        "cell": cell.name,
        "repeat": seed,
        "policy": policy,
        "tokens_per_s": outcome.tokens_per_s,
        "latency_s": {"mean": statistics.fmean(outcome.latencies_s)},
        "acceptance_length": outcome.acceptance_length,
        "rows_per_pass": outcome.num_rows / outcome.num_passes,
        "target_busy": outcome.pass_s / outcome.elapsed_s,
    }


def comparison_figures(runs: Runs) -> dict[str, Figure]:
    """EdgeCoSine over the target alone, the best baseline and itself without each part, for each
    condition: ratios of throughput, or of mean latency in figures named `latency`."""
    figures: dict[str, Figure] = {}
    compared = [run for run in runs if run["kind"] == "comparison"]
    for cell in dict.fromkeys(run["cell"] for run in compared):
        others = {
            "over_target_alone": ALONE,
            "over_best_baseline": best_throughput(compared, cell),
            **{f"ablation_{part}": f"{OURS}-without-{part}" for part in PARTS},
        }
        samples = {name: ratios(compared, cell, OURS, other) for name, other in others.items()}
        samples["latency_over_best_baseline"] = ratios(
            compared, cell, OURS, best_latency(compared, cell), latency_s
        )
        figures |= {f"{cell}_{name}": interval(found) for name, found in samples.items()}
    return figures
