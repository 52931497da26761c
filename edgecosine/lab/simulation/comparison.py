"""All policies on simulated clusters whose drafters have processors of their own, unlike the lab's
two cores. Each run has a fresh cluster, so that no policy profits from another's statistics."""

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
class Contest:
    """One condition."""

    hardware: Hardware
    sessions: int
    temperature: float

    @property
    def name(self) -> str:
        """Name in the figures."""
        return f"{self.hardware}_{self.sessions}{'_sampled' if self.temperature else ''}"


CONTESTS = (
    Contest("flat", 1, 0.0), Contest("flat", 8, 0.0), Contest("flat", 1, 0.8),
    Contest("flat", 8, 0.8), Contest("here", 1, 0.0), Contest("here", 8, 0.0),
)  # fmt: skip
SEEDS = (0, 16, 32)
"""The first prompts of the repetitions, which use different ones of 64 recorded texts."""


def run_comparison(costs: Costs, *, is_quick: bool, notify: Notify) -> Iterator[dict[str, Any]]:
    """Yield a record for each policy, condition and repetition.

    Raises LabError.
    """
    texts = {temperature: load_texts(temperature) for temperature in RECORDED[ZOO]}
    for contest in CONTESTS[:2] if is_quick else CONTESTS:
        for policy in POLICIES:
            found = [
                run_policy(contest, policy, seed, costs, texts[contest.temperature])
                for seed in (SEEDS[:1] if is_quick else SEEDS)
            ]
            yield from found
            speeds = ", ".join(f"{record['tokens_per_s']:.0f}" for record in found)
            notify(f"{contest.name}, {policy}: {speeds} tokens/s")


def run_policy(
    contest: Contest, policy: str, seed: int, costs: Costs, texts: Texts
) -> dict[str, Any]:
    """Run one policy on a cluster of its own, with every recorded drafter, or as many copies of the
    generalist for the baselines with one model; returns its record.

    Raises LabError.
    """
    models = texts.drafters
    if policy in WITH_COPIES:
        models = (GENERALIST,) * len(models)
    scenario = Scenario(models, has_device=contest.hardware == "flat")
    load = SimulatedLoad(
        policy, contest.sessions, max(_REQUESTS, 2 * contest.sessions), _MAX_TOKENS, seed
    )
    [outcome] = simulate(scenario, [load], on_hardware(contest.hardware, costs), texts)
    return {
        "kind": "comparison",
        "cell": contest.name,
        "repeat": seed,
        "policy": policy,
        "tokens_per_s": outcome.tokens_per_s,
        "latency_s": {"mean": statistics.fmean(outcome.latencies_s)},
        "acceptance_length": outcome.acceptance_length,
        "rows_per_pass": outcome.num_rows / outcome.num_passes,
        "target_busy": outcome.pass_s / outcome.elapsed_s,
    }


def comparison_figures(runs: Runs) -> dict[str, Figure]:
    """EdgeCoSine over the target alone, the best baseline and itself without each part, by contest:
    throughputs, or mean latencies where the name contains `latency`."""
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
