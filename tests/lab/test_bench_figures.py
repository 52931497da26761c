"""The benchmark's figures, computed from runs with known numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.policy import PARTS
from edgecosine.lab.bench.cells import all_cells, quick_cells, schedule
from edgecosine.lab.bench.figures import (
    TO_BEAT,
    bench_figures,
    best_latency,
    best_throughput,
    identical,
)
from edgecosine.lab.bench.overhead import overheads_s
from edgecosine.lab.bench.runner import target_busy
from tests.lab.bench_runs import made_run

FIRST_SEVEN = [
    "single_over_target_alone",
    "single_over_hf_assisted",
    "eight_throughput_over_best_baseline",
    "eight_latency_over_best_baseline",
    "eight_over_target_alone",
    "eight_over_hf_batched",
    "rtt15_over_target_alone",
]
ALL = [
    *FIRST_SEVEN,
    "rtt50_over_target_alone",
    "hostile_over_target_alone",
    "hostile_late_eight_over_target_alone",
    "sampled_over_greedy_speedup",
    "target_busy_8",
    "round_overhead_ms",
    *(f"ablation_{part}" for part in PARTS),
    "identical_share",
]


def test_figure_is_the_median_of_ratios_within_repetitions() -> None:
    runs = [
        made_run("single", policy, speed / slowness, repeat)
        for repeat, slowness in enumerate([1, 4, 2, 3, 1])
        for policy, speed in (("target-alone", 60.0), ("edgecosine", 150.0 + 30 * repeat))
    ]
    runs.append(made_run("single", "edgecosine", 1.0, repeat=5))
    figure = bench_figures(runs)["single_over_target_alone"]
    assert (figure.low, figure.value, figure.high, figure.n) == (2.5, 3.5, 4.5, 5)


def test_best_baseline_is_the_same_in_all_repetitions() -> None:
    speeds = {
        "colocated": (100, 100, 100),
        "specinfer": (90, 500, 90),
        "target-alone": (300, 300, 300),
        "edgecosine": (150, 160, 140),
    }
    runs = [
        made_run("eight", policy, speed, repeat)
        for policy, each in speeds.items()
        for repeat, speed in enumerate(each)
    ]
    for run in runs:
        if run["policy"] == "specinfer":
            run["latency_s"] = {"mean": 0.5}
    assert best_throughput(runs, "eight") == "target-alone"
    assert best_latency(runs, "eight") == "target-alone"
    drafted = [run for run in runs if run["policy"] != "target-alone"]
    assert best_throughput(drafted, "eight") == "colocated"
    assert best_latency(drafted, "eight") == "specinfer"
    figures = bench_figures(drafted)
    assert figures["eight_throughput_over_best_baseline"].value == pytest.approx(1.5)
    assert figures["eight_latency_over_best_baseline"].value == pytest.approx(2 / 1.5)
    assert best_throughput(runs, "single") is None


def test_sampled_speedup_is_relative_to_the_greedy_one() -> None:
    runs = [
        made_run("single", "target-alone", 60),
        made_run("single", "edgecosine", 180),
        made_run("single-sampled", "target-alone", 50, temperature=0.8),
        made_run("single-sampled", "edgecosine", 120, temperature=0.8),
    ]
    assert bench_figures(runs)["sampled_over_greedy_speedup"].value == pytest.approx(0.8)


def test_identical_answers_are_those_that_the_target_gave_again() -> None:
    runs = [
        made_run("single", "target-alone", 1),
        made_run("rtt2", "edgecosine", 1, compared=2, same=1),
        made_run("eight", "specinfer", 1, compared=2, same=2),
        made_run("single", "hf-assisted", 1),
    ]
    assert identical(runs) == [0.5, 1.0]
    assert bench_figures(runs)["identical_share"].value == 0.75


def test_hostile_figure_is_that_of_the_worst_hostile_drafter() -> None:
    speeds = {"wrong": 90.0, "turning": 99.0, "late": 80.0}
    runs = [
        made_run(f"hostile-{harm}", policy, speed, repeat)
        for harm, ours in speeds.items()
        for policy, speed in (("target-alone", 100.0), ("edgecosine", ours))
        for repeat in range(5)
    ]
    figures = bench_figures(runs)
    assert figures["hostile_turning_over_target_alone"].value == pytest.approx(0.99)
    assert figures["hostile_over_target_alone"].value == pytest.approx(0.8)
    assert figures["hostile_over_target_alone"].p == 1.0
    without = [run for run in runs if run["cell"] != "hostile-late"]
    assert "hostile_over_target_alone" not in bench_figures(without)


def test_gain_of_kernels_and_gain_of_speculation_are_separate_figures() -> None:
    speeds = {"hf-plain": 20.0, "hf-assisted": 30.0, "target-alone": 100.0, "edgecosine": 250.0}
    figures = bench_figures([made_run("single", *pair) for pair in speeds.items()])
    assert figures["kernels_over_hf_plain"].value == 5.0
    assert figures["hf_assisted_over_hf_plain"].value == 1.5
    assert figures["single_over_target_alone"].value == 2.5


def test_figures_without_runs_are_left_out() -> None:
    assert bench_figures([]) == {}


@pytest.mark.parametrize(
    ("cells", "names"),
    [(all_cells(1, 2), ALL), (quick_cells(all_cells(1, 2)), FIRST_SEVEN)],
    ids=["all", "quick"],
)
def test_cells_have_what_their_figures_need(cells: tuple, names: list[str]) -> None:  # type: ignore[type-arg]
    runs = [
        made_run(step.cell.name, step.policy, 10, step.repeat, target_busy=0.9,
                 round_overhead_ms=0.7, compared=2, same=2)
        for step in schedule(cells, 2)
    ]  # fmt: skip
    figures = bench_figures(runs)
    assert set(names) <= set(figures)
    assert all(figures[name].value == 1.0 for name in names[:7])
    if "round_overhead_ms" in names:
        assert (figures["round_overhead_ms"].value, figures["round_overhead_ms"].unit) == (
            0.7,
            "ms",
        )
        assert figures["target_busy_8"].value == 0.9
    assert {run["policy"] for run in runs if run["cell"] == "eight"} >= {*TO_BEAT, "hf-batched"}


def _draft(asked_s: float, ended_s: float, compute_s: float) -> dict[str, float]:
    return {"asked_s": asked_s, "ended_s": ended_s, "compute_s": compute_s}


def test_overhead_excludes_computing_time() -> None:
    prefill = {"started_s": 0.0, "submitted_s": 0.0, "verified_s": 1.0, "pass_s": 1.0, "drafts": []}
    rounds = [
        prefill,
        {
            "started_s": 1.0, "submitted_s": 1.5, "verified_s": 3.0, "pass_s": 1.2,
            "drafts": [
                _draft(1.1, 1.5, 0.2),  # computes from 1.2 to 1.4
                _draft(1.1, 1.4, 0.1),  # meanwhile
                _draft(1.6, 2.6, 1.0),  # during the pass, so it causes no wait
                _draft(1.6, 3.3, 1.5),  # computes from 1.7 to 3.2, 0.2 of it after verification
            ],
        },
        {"started_s": 3.4, "submitted_s": 3.4, "verified_s": 4.4, "pass_s": 1.0, "drafts": []},
        {"started_s": 4.5, "submitted_s": 4.5, "verified_s": 5.0, "pass_s": 0.5, "drafts": []},
    ]  # fmt: skip
    assert overheads_s(rounds) == pytest.approx([2.4 - 0.2 - 1.2 - 0.2, 0.1])
    assert overheads_s(rounds[:2]) == overheads_s([]) == []


times = st.floats(0, 1)


@given(st.lists(st.tuples(times, times, times), max_size=5), times, times, times)
def test_overhead_is_between_zero_and_the_round(
    drafts: list[tuple[float, float, float]], waited_s: float, pass_s: float, rest_s: float
) -> None:
    submitted_s = 1 + waited_s
    verified_s = submitted_s + pass_s
    ended_s = verified_s + rest_s
    made = []
    for where, length, share in drafts:
        asked_s = 1 + where * (ended_s - 1)
        last_s = submitted_s if asked_s < submitted_s else ended_s
        end_s = asked_s + length * (last_s - asked_s)
        made.append(_draft(asked_s, end_s, share * (end_s - asked_s)))
    one = {"started_s": 1.0, "submitted_s": submitted_s, "verified_s": verified_s,
           "pass_s": pass_s, "drafts": made}  # fmt: skip
    [overhead_s] = overheads_s([one, one, {**one, "started_s": ended_s}])
    assert -1e-9 <= overhead_s <= waited_s + rest_s + 1e-9


def test_target_busy_is_that_of_the_middle_of_a_run() -> None:
    states = [
        (0.0, {"busy_s": 0.0, "idle_s": 90.0}),
        (2.0, {"busy_s": 1.0, "idle_s": 91.0}),
        (3.0, {"busy_s": 2.0, "idle_s": 91.0}),
        (7.0, {"busy_s": 5.6, "idle_s": 91.4}),
        (8.0, {"busy_s": 5.7, "idle_s": 92.3}),
    ]
    assert target_busy(states, 10.0) == pytest.approx(0.9)
    assert target_busy(states[:3], 10.0) is None
    assert target_busy(states, 100.0) is None
