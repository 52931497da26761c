"""The benchmark's figures as pure functions of its record.

Ratios are taken within one repetition of one cell. The baselines include the target alone. A figure
without runs in the record is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edgecosine import zoo
from edgecosine.balance.policy import PARTS
from edgecosine.lab.bench.cells import ALONE, ASSISTED, BATCHED, COLOCATED, OURS, PLAIN
from edgecosine.lab.figures import Figure, counted, interval
from edgecosine.lab.hostile_drafter import HARMS
from edgecosine.lab.paired_runs import ratio_figure
from edgecosine.lab.routing_regret import routing

Run = Mapping[str, Any]
Runs = Sequence[Run]
Value = Callable[[Run], float]

TO_BEAT = (ALONE, COLOCATED, "specinfer", "specedge", "cosine-paper")

_RATIOS = (
    ("single_over_target_alone", "single", OURS, ALONE),
    ("single_over_hf_assisted", "single", OURS, ASSISTED),
    ("kernels_over_hf_plain", "single", ALONE, PLAIN),
    ("hf_assisted_over_hf_plain", "single", ASSISTED, PLAIN),
    ("eight_over_target_alone", "eight", OURS, ALONE),
    ("eight_over_hf_batched", "eight", OURS, BATCHED),
    ("rtt15_over_target_alone", "rtt15", OURS, ALONE),
    ("rtt50_over_target_alone", "rtt50", OURS, ALONE),
)
"""(name, cell, policy, policy to compare with). `kernels_over_hf_plain` is the gain of the engine
without speculation, `single_over_target_alone` the gain of speculation on this engine, and
`hf_assisted_over_hf_plain` the gain of speculation in transformers."""


def bench_figures(runs: Runs) -> dict[str, Figure]:
    """All figures for which the runs have data, by name."""
    found = {name: compare(runs, cell, one, other) for name, cell, one, other in _RATIOS}
    best = {name: best_of(runs, "eight") for name, best_of in _BEST.items()}
    found["eight_throughput_over_best_baseline"] = compare(runs, "eight", OURS, best["throughput"])
    found["eight_latency_over_best_baseline"] = compare(
        runs, "eight", OURS, best["latency"], latency_s, smaller_is_better=True
    )
    for name in ("", "_eight"):
        cells = (f"hostile-{harm}{name.replace('_', '-')}" for harm in HARMS)
        each = {cell: compare(runs, cell, OURS, ALONE) for cell in cells}
        found |= {f"{cell.replace('-', '_')}_over_target_alone": f for cell, f in each.items()}
        there = [figure for figure in each.values() if figure is not None]
        if len(there) == len(HARMS):
            worst = min(there, key=lambda figure: figure.value)
            found[f"hostile{name}_over_target_alone"] = worst
    for part in PARTS:
        without = f"{OURS}-without-{part}"
        found[f"ablation_{part}"] = compare(runs, "ablations", OURS, without)
        for cell in ("ablations-eight", "ablations-inputs-eight"):
            if (at_eight := compare(runs, cell, OURS, without)) is not None:
                found[f"ablation_{part}_8"] = at_eight
    figures = {name: figure for name, figure in found.items() if figure is not None}
    samples = {
        "sampled_over_greedy_speedup": _sampled_over_greedy(runs),
        "target_busy_8": _reported(runs, "eight", "target_busy"),
        "ahead_hit_rate": _reported(runs, "single", "ahead_hit_rate"),
        "looping_share": _numbers(run["looping_share"] for run in runs),
        **_routing(runs),
    }
    figures |= {name: interval(values) for name, values in samples.items() if values}
    if overheads := _reported(runs, "loopback", "round_overhead_ms"):
        figures["round_overhead_ms"] = interval(overheads, unit="ms")
    if same := identical(runs):
        figures["identical_share"] = counted(statistics.fmean(same), "ratio")
    return figures


def compare(
    runs: Runs, cell: str, over: str, under: str | None, value: Value | None = None, *,
    smaller_is_better: bool = False,
) -> Figure | None:  # fmt: skip
    """The ratio of two policies' throughput, or of another value, over the repetitions of a cell
    that have both; None if no repetition has both."""
    pairs = _pairs(runs, cell, over, under, value or tokens_per_s)
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return ratio_figure(ours, theirs, smaller_is_better=smaller_is_better)


def _routing(runs: Runs) -> dict[str, list[float]]:
    """Samples of routing regret with one request at a time, and of the shares of rounds that the
    best drafter led."""
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
    """Throughput of a run, in tokens per second."""
    return float(run["tokens_per_s"])


def latency_s(run: Run) -> float:
    """Mean latency of a run's requests, in seconds."""
    return float(run["latency_s"]["mean"])


def ratios(
    runs: Runs, cell: str, over: str, under: str | None, value: Value = tokens_per_s
) -> list[float]:
    """The ratio of two policies' values, for each repetition of a cell that has both."""
    return [our / their for our, their in _pairs(runs, cell, over, under, value)]


def _pairs(
    runs: Runs, cell: str, over: str, under: str | None, value: Value
) -> list[tuple[float, float]]:
    ours, theirs = (
        {run["repeat"]: value(run) for run in _of(runs, cell, policy)} for policy in (over, under)
    )
    return [(ours[repeat], theirs[repeat]) for repeat in sorted(ours.keys() & theirs.keys())]


def best_throughput(runs: Runs, cell: str) -> str | None:
    """The baseline with the highest median throughput in a cell; None without baselines."""
    medians = _medians(runs, cell, tokens_per_s)
    return max(medians, key=medians.__getitem__, default=None)


def best_latency(runs: Runs, cell: str) -> str | None:
    """The baseline with the lowest median of its mean latencies; None without baselines."""
    medians = _medians(runs, cell, latency_s)
    return min(medians, key=medians.__getitem__, default=None)


_BEST = {"throughput": best_throughput, "latency": best_latency}


def identical(runs: Runs) -> list[float]:
    """For each run with comparisons, the share of the compared answers that equal the target's
    own."""
    return [run["same"] / run["compared"] for run in runs if run.get("compared")]


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
    """A field of EdgeCoSine's runs in a cell, of the runs that recorded it."""
    return _numbers(run.get(field) for run in _of(runs, cell, OURS))


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _of(runs: Runs, cell: str, policy: str | None) -> list[Run]:
    return [run for run in runs if run["cell"] == cell and run["policy"] == policy]
