"""The regime map: no text of a sweep is measured, every setting is a policy, and figures compare
EdgeCoSine with the best baseline of each cell."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgecosine.balance.policy import find_policy
from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import ALONE, GENERALIST, OURS
from edgecosine.lab.bench.run_rounds import DRAFTING, PLAIN
from edgecosine.lab.bench.table import read_report
from edgecosine.lab.regime_map.cells import ALL_REMOTE, ONE_DRAFTER, MapCell, all_cells, only
from edgecosine.lab.regime_map.map_curves import map_curves
from edgecosine.lab.regime_map.map_figures import best_baseline, map_cell, map_figures
from edgecosine.lab.regime_map.map_table import HEAD, map_rows
from edgecosine.lab.regime_map.run_cell import costs_of, play, run_cell
from edgecosine.lab.regime_map.sweeps import SWEEPS, tune
from edgecosine.lab.regime_map.texts import SEGMENT, best_drafter, measured, swept
from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import FLAT_PASS_ROWS
from edgecosine.lab.simulation.run_simulation import read_costs
from edgecosine.lab.simulation.texts import Texts
from tests.lab.test_simulation import COSTS, TEXTS

RECORDS = Path(__file__).parents[2] / "docs" / "measured"
MIXED, ONE = MapCell(), MapCell(mix="one")


def prompts(texts: Texts) -> set[tuple[int, ...]]:
    return set(texts.prompts)


def test_cell_names_are_unique_and_every_cell_has_its_number_of_drafters() -> None:
    cells = all_cells()
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(len(cell.models()) == cell.drafters for cell in cells)
    assert all(cell.beside == (GENERALIST,) for cell in cells if cell.rtt_ms == 50)
    assert not any(cell.beside for cell in cells if cell.rtt_ms < 50)
    assert {cell.ratio for cell in cells} >= {0.02, 0.15, 0.4}
    assert only(cells, ["rtt50"]) == tuple(cell for cell in cells if cell.rtt_ms == 50)
    with pytest.raises(LabError, match="no cell has rtt7"):
        only(cells, ["rtt7"])


@pytest.mark.parametrize("cell", [MIXED, ONE, MapCell(sessions=1)])
def test_repetitions_and_sweeps_share_no_prompt(cell: MapCell) -> None:
    used = [prompts(swept(TEXTS, cell)), *(prompts(measured(TEXTS, cell, n)) for n in range(5))]
    assert all(used)
    assert not any(first & second for first, second in itertools.combinations(used, 2))


def test_best_drafter_of_the_zoo_is_the_generalist_or_the_domains_specialist() -> None:
    assert best_drafter(TEXTS, MIXED) == best_drafter(TEXTS, MapCell(mix="within")) == GENERALIST
    for domain in ONE.specialists:
        assert best_drafter(TEXTS, ONE, domain) == domain


def test_text_that_changes_its_domain_keeps_each_pieces_drafts() -> None:
    spliced, plain = (measured(TEXTS, replace(MIXED, mix=mix), 0) for mix in ("within", "mixed"))
    second = slice(SEGMENT, 2 * SEGMENT)
    assert spliced.prompts[0] == plain.prompts[0]
    assert (spliced.answers[0, second] == plain.answers[1, second]).all()
    assert (spliced.guesses[:, 0, second] == plain.guesses[:, 1, second]).all()


def test_sweep_finds_the_better_constants_and_tries_policies_only() -> None:
    for name in SWEEPS:
        tried = list(tune(name, lambda policy: float(len(policy))))
        assert tried[0][0] == name
        assert all(find_policy(policy) is not None for policy, _ in tried)
    speeds = dict(tune("specedge", lambda policy: float("groups=1" in policy)))
    assert max(speeds, key=lambda policy: speeds[policy]) == "specedge:groups=1"
    assert "specedge:groups=1,proactive=8" in speeds


def test_hardware_of_a_cell_replaces_passes_steps_and_round_trip_only() -> None:
    costs = costs_of(MapCell(ratio=0.25, rtt_ms=8.0), COSTS)
    assert costs.target_pass(1) == costs.target_pass(FLAT_PASS_ROWS, sessions=8)
    assert costs.drafter_step(8) == pytest.approx(0.25 * costs.target_pass(1))
    assert costs.one_way_s == 0.004
    assert (costs.round_s, costs.message_s) == (COSTS.round_s, COSTS.message_s)


@pytest.mark.parametrize(
    ("policy", "figure"),
    [(DRAFTING, "round_overhead_8_ms"), (PLAIN, "plain_round_overhead_8_ms")],
)
def test_simulated_loop_takes_the_measured_time_for_a_round(policy: str, figure: str) -> None:
    costs = costs_of(MIXED, read_costs(RECORDS / "simulation.json"))
    scenario = Scenario(TEXTS.drafters, has_device=True)
    [outcome] = simulate(scenario, [SimulatedLoad(policy, 8, 8, 48)], costs, TEXTS)
    measured_ms = read_report(RECORDS / "rounds.json")["figures"][figure]["value"]
    assert 1e3 * outcome.loop_s / outcome.num_rounds > 0.85 * measured_ms


@pytest.mark.parametrize(("sessions", "least"), [(1, 1.2), (8, 1.0)])
def test_drafter_beside_the_target_helps_where_the_others_are_far(
    sessions: int, least: float
) -> None:
    far = MapCell(sessions=sessions, ratio=0.02, rtt_ms=50.0)
    with_it, without = (
        play(far, name, OURS, COSTS, TEXTS, 0).tokens_per_s for name in (OURS, ALL_REMOTE)
    )
    assert with_it > least * without


@pytest.mark.parametrize("sessions", [1, 8])
def test_drafter_beside_the_target_is_left_alone_where_others_are_near(sessions: int) -> None:
    load, costs = SimulatedLoad(OURS, sessions, 8, 48), costs_of(MIXED, COSTS)
    scenario = Scenario(MIXED.models(), has_device=True, beside=(GENERALIST,))
    first, second = (
        {name for shares in outcome.drafters.values() for name in shares}
        for outcome in simulate(scenario, [load, load], costs, TEXTS)
    )
    assert f"{GENERALIST}-4" in first
    assert f"{GENERALIST}-4" not in second


def record(cell: MapCell, **speeds: list[float]) -> dict[str, Any]:
    repeats = {
        name.replace("_", "-"): [[speed, 1 / speed, 1.0, 1.0] for speed in each]
        for name, each in speeds.items()
    }
    return {"kind": "map", "cell": cell.name, **asdict(cell), "repeats": repeats}


def test_figures_compare_with_the_best_baseline_of_each_cell() -> None:
    five = [100.0] * 5
    runs = [
        record(MIXED, edgecosine=[150.0] * 5, specedge=five, specinfer=[90.0] * 5,
               target_alone=[50.0] * 5, edgecosine_one_drafter=[120.0] * 5),
        record(replace(MIXED, rtt_ms=50.0), edgecosine=[95.0] * 5, target_alone=five,
               edgecosine_one_drafter=five, colocated=[200.0] * 5,
               edgecosine_all_remote=[80.0] * 5),
    ]  # fmt: skip
    assert map_cell(runs[0]) == MIXED
    assert best_baseline(runs[0]) == "specedge"
    figures = map_figures(runs)
    throughput = figures["cosine_throughput_over_best_baseline"]
    assert (throughput.value, throughput.n, throughput.p) == (pytest.approx(1.5), 5, 1 / 32)
    assert figures["cosine_latency_over_best_baseline"].value == pytest.approx(1 / 1.5)
    assert figures["cooperation_worth"].value == pytest.approx(1.25)
    assert figures["never_worse_than_best_baseline"].value == pytest.approx(0.475)
    assert figures["never_worse_with_the_same_drafters"].value == pytest.approx(0.8)
    assert figures["cells_lost"].value == 1


def test_curves_have_a_point_for_each_cell_of_a_line_through_the_centre() -> None:
    runs = [
        record(cell, edgecosine=[150.0], target_alone=[100.0], edgecosine_one_drafter=[120.0],
               edgecosine_without_fusion=[75.0])
        for cell in (MIXED, replace(MIXED, ratio=0.4), replace(MIXED, ratio=0.4, drafters=8))
    ]  # fmt: skip
    for run in runs:
        for part in map_cell(run).parts:
            run["repeats"].setdefault(f"{OURS}-without-{part}", [[150.0, 1.0, 1.0, 1.0]])
    others, parts = map_curves(runs)
    assert others.lines["best baseline"] == [(0.15, 1.5), (0.4, 1.5)]
    assert others.lines[ONE_DRAFTER] == [(0.15, 1.25), (0.4, 1.25)]
    assert parts.lines["fusion"] == [(0.15, 2.0), (0.4, 2.0)]


def test_table_has_a_row_for_each_cell_won_or_lost() -> None:
    runs = [
        record(cell, edgecosine=[speed] * 5, target_alone=[100.0] * 5, specedge=[110.0] * 5,
               edgecosine_one_drafter=[100.0] * 5) | {"settings": {"specedge": "specedge:depth=2"}}
        for cell, speed in ((MIXED, 121.0), (replace(MIXED, rtt_ms=50.0), 99.0))
    ]  # fmt: skip
    won, lost = map_rows(runs)
    assert len(won) == len(lost) == len(HEAD)
    assert won[6:10] == ["100", "110 (`specedge:depth=2`)", "121", "1.10 (1.10 to 1.10)"]
    assert lost[8:10] == ["99", "0.90 (0.90 to 0.90)"]


@pytest.mark.parametrize("keeps_baselines", [True, False])
def test_renewed_cell_runs_edgecosine_and_maybe_its_baselines(keeps_baselines: bool) -> None:
    cell = MapCell(sessions=1, drafters=1, ratio=0.1)
    former = record(cell, target_alone=[1.0], specedge=[2.0], edgecosine=[3.0])
    former |= {"settings": {"specedge": "specedge:depth=2", "colocated": "colocated"}}
    renewed = run_cell(cell, 1, COSTS, TEXTS, former, keeps_baselines=keeps_baselines)
    assert renewed["repeats"].keys() == {ALONE, "specedge", OURS, ONE_DRAFTER}
    assert renewed["settings"] == former["settings"]
    for name in (ALONE, "specedge"):
        is_kept = renewed["repeats"][name] == former["repeats"][name]
        assert is_kept == keeps_baselines
    assert renewed["repeats"][OURS] == renewed["repeats"][ONE_DRAFTER]
    assert renewed["repeats"][OURS][0][0] > 30


def test_slowed_drafters_share_a_processor_only_while_they_compute() -> None:
    """A second drafter on the same processor computes a little, and sleeps beside the first one."""
    costs = replace(costs_of(MIXED, COSTS), step_s={1: 1e-5, 64: 2e-5}, least_step_s=0.006)
    outcomes = [
        simulate(
            Scenario(TEXTS.drafters[:2], is_core_shared=True, has_device=True),
            [SimulatedLoad(DRAFTING, 2, 2, 32)], each, TEXTS,
        )[0]
        for each in (costs, replace(costs, step_s={1: 0.006, 64: 0.006}, least_step_s=0.0))
    ]  # fmt: skip
    slept, computed = (outcome.tokens_per_s for outcome in outcomes)
    assert slept > 1.05 * computed
