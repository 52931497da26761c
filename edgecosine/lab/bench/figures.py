"""The benchmark's figures as pure functions of its record.

Ratios are taken within one repetition of one cell. A figure without runs in the record is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgecosine import zoo
from edgecosine.balance.policy import PARTS
from edgecosine.lab.bench.cells import ALONE, ASSISTED, BATCHED, COLOCATED, OURS, STOCK
from edgecosine.lab.figures import Figure, interval
from edgecosine.lab.routing_regret import routing

Run = Mapping[str, Any]
Runs = Sequence[Run]
Value = Callable[[Run], float]

TO_BEAT = (COLOCATED, "specinfer", "specedge", "cosine-paper")


def bench_figures(runs: Runs) -> dict[str, Figure]:
    """All figures that the runs have data for, by name."""
    samples: dict[str, list[float]] = {
        "single_over_target_alone": ratios(runs, "single", OURS, ALONE),
        "single_over_hf_assisted": ratios(runs, "single", OURS, ASSISTED),
        "eight_throughput_over_best_baseline": ratios(
            runs, "eight", OURS, best_throughput(runs, "eight")
        ),
        "eight_latency_over_best_baseline": ratios(
            runs, "eight", OURS, best_latency(runs, "eight"), latency_s
        ),
        "eight_over_target_alone": ratios(runs, "eight", OURS, ALONE),
        "eight_over_hf_batched": ratios(runs, "eight", OURS, BATCHED),
        "rtt15_over_target_alone": ratios(runs, "rtt15", OURS, ALONE),
        "rtt50_over_target_alone": ratios(runs, "rtt50", OURS, ALONE),
        "hostile_over_target_alone": ratios(runs, "hostile", OURS, ALONE),
        "hostile_over_target_alone_8": ratios(runs, "hostile-eight", OURS, ALONE),
        "sampled_over_greedy_speedup": _sampled_over_greedy(runs),
        "target_busy_8": _reported(runs, "eight", "target_busy"),
        "ahead_hit_rate": _reported(runs, "single", "ahead_hit_rate"),
    }
    for part in PARTS:
        without = f"{OURS}-without-{part}"
        samples[f"ablation_{part}"] = ratios(runs, "ablations", OURS, without)
        samples[f"ablation_{part}_8"] = ratios(runs, "ablations-eight", OURS, without)
    figures = {name: interval(values) for name, values in samples.items() if values}
    if overheads := _reported(runs, "loopback", "round_overhead_ms"):
        figures["round_overhead_ms"] = interval(overheads, unit="ms")
    figures |= {name: interval(values) for name, values in _routing(runs).items()}
    if same := identical(runs):
        figures["identical_share"] = interval(same, statistics.fmean)
    return figures


def _routing(runs: Runs) -> dict[str, list[float]]:
    """Routing regret with one request at a time, and shares of rounds led by the best drafter."""
    matrix = zoo.acceptance()
    samples: dict[str, list[float]] = {}
    for run in _of(runs, "single", OURS):
        if found := routing(run, matrix):
            shares = {f"routed_to_best_{domain}": x for domain, x in found.to_best.items()}
            values = {"routing_regret": found.regret, "routed_first_right": found.first_right}
            for name, value in (values | shares).items():
                samples.setdefault(name, []).append(value)
    return samples


def tokens_per_s(run: Run) -> float:
    """Throughput of a run."""
    return float(run["tokens_per_s"])


def latency_s(run: Run) -> float:
    """Mean latency of a run's requests."""
    return float(run["latency_s"]["mean"])


def ratios(
    runs: Runs, cell: str, over: str, under: str | None, value: Value = tokens_per_s
) -> list[float]:
    """One policy over another, for each repetition of a cell that has both."""
    ours, theirs = (
        {run["repeat"]: value(run) for run in _of(runs, cell, policy)} for policy in (over, under)
    )
    return [ours[repeat] / theirs[repeat] for repeat in sorted(ours.keys() & theirs.keys())]


def best_throughput(runs: Runs, cell: str) -> str | None:
    """The baseline with the highest median throughput in a cell; None where there is none."""
    medians = _medians(runs, cell, tokens_per_s)
    return max(medians, key=medians.__getitem__, default=None)


def best_latency(runs: Runs, cell: str) -> str | None:
    """The baseline with the lowest median of its mean latencies; None where there is none."""
    medians = _medians(runs, cell, latency_s)
    return min(medians, key=medians.__getitem__, default=None)


def identical(runs: Runs) -> list[float]:
    """For each run, the share of its answers that are identical to those of the target alone.

    Answers are matched by temperature and by the number of their request. Runs outside the runtime
    and of the target alone are left out.
    """
    ours = [run for run in runs if run["policy"] not in STOCK]
    alone = {
        place: text
        for run in ours if run["policy"] == ALONE
        for place, text in _texts(run).items()
    }  # fmt: skip
    shares = []
    for run in ours:
        compared = [alone[place] == text for place, text in _texts(run).items() if place in alone]
        if run["policy"] != ALONE and compared:
            shares.append(statistics.fmean(compared))
    return shares


def _texts(run: Run) -> dict[tuple[float, int], str]:
    return {
        (run["temperature"], number): text
        for number, text in enumerate(run["texts"], start=run["first_job"])
    }


def _sampled_over_greedy(runs: Runs) -> list[float]:
    """The speed-up at temperature 0.8 over that at 0, by repetition."""
    sampled, greedy = (_speedups(runs, cell) for cell in ("single-sampled", "single"))
    return [sampled[repeat] / greedy[repeat] for repeat in sorted(sampled.keys() & greedy.keys())]


def _speedups(runs: Runs, cell: str) -> dict[int, float]:
    ours, alone = (
        {run["repeat"]: tokens_per_s(run) for run in _of(runs, cell, policy)}
        for policy in (OURS, ALONE)
    )
    return {repeat: ours[repeat] / alone[repeat] for repeat in ours.keys() & alone.keys()}


def _medians(runs: Runs, cell: str, value: Value) -> dict[str, float]:
    values = {policy: [value(run) for run in _of(runs, cell, policy)] for policy in TO_BEAT}
    return {policy: statistics.median(each) for policy, each in values.items() if each}


def _reported(runs: Runs, cell: str, field: str) -> list[float]:
    """A field of EdgeCoSine's runs in a cell, where it was recorded."""
    values = (run.get(field) for run in _of(runs, cell, OURS))
    return [value for value in values if value is not None]


def _of(runs: Runs, cell: str, policy: str | None) -> list[Run]:
    return [run for run in runs if run["cell"] == cell and run["policy"] == policy]
