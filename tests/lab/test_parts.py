"""The worth of a part is computed within repetitions."""

from __future__ import annotations

from edgecosine.balance.policy import PARTS, POLICIES
from edgecosine.lab.bench.run_parts import parts_figures, policies


def test_worth_is_the_median_ratio_of_repetitions() -> None:
    speeds = {"edgecosine": 60.0, "edgecosine-without-siblings": 40.0, "target-alone": 20.0}
    runs = [
        {
            "policy": policy,
            "repeat": repeat,
            "temperature": temperature,
            "tokens_per_s": speeds.get(policy, 60.0) * (1 + repeat) * (1 + temperature),
        }
        for policy in policies()
        for repeat in range(5)
        for temperature in (0.0, 0.8)
    ]
    figures = parts_figures(runs)
    assert figures["over_target_alone"].value == 3.0
    assert figures["worth_of_siblings"].value == figures["worth_of_siblings_sampled"].value == 1.5
    assert {figures[f"worth_of_{part}"].value for part in PARTS if part != "siblings"} == {1.0}


def test_repetitions_that_are_too_few_have_no_interval() -> None:
    runs = [
        {"policy": policy, "repeat": repeat, "temperature": temperature, "tokens_per_s": 1.0}
        for policy in policies()
        for repeat in range(4)
        for temperature in (0.0, 0.8)
    ]
    assert {figure.low for figure in parts_figures(runs).values()} == {None}
    assert {figure.n for figure in parts_figures(runs).values()} == {4}


def test_every_part_is_left_out_once() -> None:
    assert set(policies()) <= set(POLICIES)
    assert len(policies()) == len(PARTS) + 2
