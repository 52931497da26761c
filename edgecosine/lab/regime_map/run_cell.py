"""Runs one cell of the map: tunes the baselines, then measures them beside EdgeCoSine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgecosine.lab.bench.cells import ALONE, COLOCATED, OURS, WITH_COPIES
from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.regime_map.cells import ALL_REMOTE, ONE_DRAFTER, PASS_S, MapCell
from edgecosine.lab.regime_map.sweeps import SWEEPS, tune
from edgecosine.lab.regime_map.texts import best_drafter, domain_of, measured, swept
from edgecosine.lab.simulation.cluster import Outcome, Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.texts import Texts

Record = dict[str, Any]

MAX_TOKENS = 80
SWEPT_TOKENS = 64
MEASURED = 2
"""Baselines that are measured in a cell outside CoSine's setting: the best ones of the sweep."""


def run_cell(
    cell: MapCell,
    repeats: int,
    costs: Costs,
    texts: Texts,
    former: Record | None = None,
    *,
    keeps_baselines: bool = True,
) -> Record:
    """Measure a cell; returns its record.

    The record has every setting of the sweep, the share of text that repeats itself, and for each
    policy and repetition tokens per second, mean latency in seconds, accepted tokens of a round and
    rows of a pass. Every run has a cluster of its own, so policies share nothing that was learned;
    the runs of a repetition have the same texts. Of a `former` record the baselines are kept, or
    only their constants.
    """
    record = former or _with_tuned_baselines(cell, repeats, costs, texts)
    if former and not keeps_baselines:
        rivals = [name for name in former["settings"] if name in former["repeats"]]
        record = _with_baselines(cell, former, rivals, repeats, costs, texts)
    own = {OURS: OURS, ONE_DRAFTER: OURS}
    own |= {ALL_REMOTE: OURS} if cell.beside else {}
    own |= {name: name for part in cell.parts for name in [f"{OURS}-without-{part}"]}
    measured_ones = _measure(cell, own, repeats, costs, texts)
    return {**record, "repeats": {**record["repeats"], **measured_ones}}


def _with_tuned_baselines(cell: MapCell, repeats: int, costs: Costs, texts: Texts) -> Record:
    trials = {
        name: list(tune(name, lambda policy: _swept_speed(cell, policy, costs, texts)))
        for name in SWEEPS
    }
    chosen = {name: max(tried, key=lambda each: each[1]) for name, tried in trials.items()}
    ranked = sorted(chosen, key=lambda name: -chosen[name][1])
    rivals = ranked if cell.is_of_the_paper else ranked[:MEASURED]
    record = {
        "kind": "map",
        "cell": cell.name,
        **asdict(cell),
        "looping_share": round(_looping_share(cell, repeats, texts), 3),
        "sweep": {name: [[p, round(s, 1)] for p, s in tried] for name, tried in trials.items()},
        "settings": {name: policy for name, (policy, _) in chosen.items()},
    }
    return _with_baselines(cell, record, rivals, repeats, costs, texts)


def _with_baselines(
    cell: MapCell,
    record: Record,
    rivals: Sequence[str],
    repeats: int,
    costs: Costs,
    texts: Texts,
) -> Record:
    """The record with measurements of the target alone and of the `rivals` with their constants."""
    policies = {ALONE: ALONE, **{name: record["settings"][name] for name in rivals}}
    return {**record, "repeats": _measure(cell, policies, repeats, costs, texts)}


def _looping_share(cell: MapCell, repeats: int, texts: Texts) -> float:
    """Mean share of repeated text in the measured answers."""
    return statistics.fmean(
        loop_share(chosen.answer(number, MAX_TOKENS))
        for repeat in range(repeats)
        for chosen in [measured(texts, cell, repeat)]
        for number in range(len(chosen.prompts))
    )


def _measure(
    cell: MapCell, policies: Mapping[str, str], repeats: int, costs: Costs, texts: Texts
) -> dict[str, list[list[float]]]:
    return {
        name: [
            _repetition(play(cell, name, policy, costs, texts, repeat)) for repeat in range(repeats)
        ]
        for name, policy in policies.items()
    }


def _swept_speed(cell: MapCell, policy: str, costs: Costs, texts: Texts) -> float:
    name = policy.partition(":")[0]
    return play(cell, name, policy, costs, texts, None).tokens_per_s


def play(
    cell: MapCell, name: str, policy: str, costs: Costs, texts: Texts, repeat: int | None
) -> Outcome:
    """One run of a policy on a fresh simulated cluster, on the texts of a repetition, or on those
    of the sweep if `repeat` is None."""
    chosen = swept(texts, cell) if repeat is None else measured(texts, cell, repeat)
    is_of_one = cell.mix == "one" and repeat is not None
    single = best_drafter(texts, cell, domain_of(cell, repeat or 0) if is_of_one else "")
    models = cell.models()
    if name in WITH_COPIES:
        models = (single,) * cell.drafters
    elif name in (COLOCATED, ONE_DRAFTER):
        models = (single,)
    elif name == ALONE:
        models = ()
    beside = cell.beside if name == OURS else ()
    if name == COLOCATED:
        models, beside = (), models
    scenario = Scenario(models, has_device=True, beside=beside)
    tokens = SWEPT_TOKENS if repeat is None else MAX_TOKENS
    load = SimulatedLoad(policy, cell.sessions, len(chosen.prompts), tokens)
    [outcome] = simulate(scenario, [load], costs_of(cell, costs), chosen)
    return outcome


def costs_of(cell: MapCell, costs: Costs) -> Costs:
    """The measured costs with the cell's hardware and network."""
    slowed = costs.on_accelerators(PASS_S, cell.ratio * PASS_S)
    return slowed.with_rtt(cell.rtt_ms / 1e3)


def _repetition(outcome: Outcome) -> list[float]:
    latency_s = statistics.fmean(outcome.latencies_s)
    return [
        round(outcome.tokens_per_s, 2), round(latency_s, 4), round(outcome.acceptance_length, 3),
        round(outcome.num_rows / outcome.num_passes, 1),
    ]  # fmt: skip
