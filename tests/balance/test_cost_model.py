"""Estimates between and beyond smoothed measurements."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.cost_model import NOTICED, DrafterSpeed, PassCost, smooth

seconds = st.floats(0, 10)
measurements = st.dictionaries(st.integers(1, 64), seconds, min_size=1, max_size=12)


def cost_of(measured: dict[int, float]) -> PassCost:
    """The cost model after one pass of each size."""
    cost = PassCost()
    for rows, elapsed_s in measured.items():
        cost.observe(rows, elapsed_s)
    return cost


def test_expected_time_is_zero_before_the_first_pass() -> None:
    assert PassCost().expected_s(5) == 0.0


@given(measurements)
def test_larger_pass_is_never_expected_to_be_quicker(measured: dict[int, float]) -> None:
    cost = cost_of(measured)
    expected = [cost.expected_s(rows) for rows in range(1, 80)]
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(expected))


@given(st.lists(seconds, min_size=1, max_size=12), st.integers(1, 5))
def test_measured_size_is_expected_as_measured_if_times_rise(
    times: list[float], stride: int
) -> None:
    measured = {1 + stride * at: elapsed_s for at, elapsed_s in enumerate(sorted(times))}
    cost = cost_of(measured)
    for rows, elapsed_s in measured.items():
        assert cost.expected_s(rows) == pytest.approx(elapsed_s)


@given(measurements, st.integers(1, 64))
def test_estimate_between_two_sizes_lies_between_their_times(
    measured: dict[int, float], rows: int
) -> None:
    cost = cost_of(measured)
    below = [cost.expected_s(each) for each in measured if each <= rows]
    above = [cost.expected_s(each) for each in measured if each >= rows]
    assert max(below, default=0.0) - 1e-9 <= cost.expected_s(rows)
    if above:
        assert cost.expected_s(rows) <= min(above) + 1e-9


def test_pass_costs_are_linear_between_and_beyond_measured_sizes() -> None:
    cost = cost_of({2: 1.0, 4: 2.0, 8: 6.0})
    assert [cost.expected_s(rows) for rows in (1, 3, 6, 9, 12)] == [1.0, 1.5, 4.0, 7.0, 10.0]


@given(measurements, st.integers(0, 100), st.integers(1, 60))
def test_span_has_the_expected_times(measured: dict[int, float], first: int, count: int) -> None:
    cost = cost_of(measured)
    expected = [cost.expected_s(rows) for rows in range(first, first + count)]
    assert cost.span(first, count) == pytest.approx(expected)


def test_sizes_of_large_passes_are_few_and_close() -> None:
    cost = cost_of({rows: 0.001 * rows for rows in range(1, 12000)})
    assert len(cost.by_rows) < 64 + 16 * 8
    for rows in range(1, 12000, 7):
        assert cost.expected_s(rows) == pytest.approx(0.001 * rows, rel=0.04)


def test_pass_cost_follows_a_target_that_became_slower() -> None:
    cost = cost_of({4: 1.0})
    for _ in range(60):
        cost.observe(4, 3.0)
    assert cost.expected_s(4) == pytest.approx(3.0, rel=1.5 * NOTICED)


@given(seconds, seconds, st.floats(0, 1))
def test_smoothed_value_lies_between_old_and_new(old: float, new: float, share: float) -> None:
    assert smooth(None, new, share) == new
    assert min(old, new) - 1e-9 <= smooth(old, new, share) <= max(old, new) + 1e-9


def test_speed_separates_compute_from_overhead() -> None:
    speed = DrafterSpeed()
    assert speed.expected_s(4) == 0.0
    speed.observe(elapsed_s=0.05, compute_s=0.04, num_steps=4)
    assert speed.token_s == pytest.approx(0.01)
    assert speed.overhead_s == pytest.approx(0.01)
    assert speed.expected_s(8) == pytest.approx(0.09)


def test_draft_that_was_made_before_says_nothing_about_the_time_of_a_step() -> None:
    speed = DrafterSpeed()
    speed.observe(elapsed_s=0.05, compute_s=0.04, num_steps=4)
    speed.observe(elapsed_s=0.002, compute_s=0.0004, num_steps=0, is_disturbed=True)
    assert speed.token_s == pytest.approx(0.01)


@given(seconds, seconds)
def test_reported_compute_never_makes_the_overhead_negative(
    elapsed_s: float, compute_s: float
) -> None:
    speed = DrafterSpeed()
    speed.observe(elapsed_s, compute_s, 4)
    assert speed.overhead_s is not None
    assert speed.overhead_s >= 0.0


@given(st.one_of(st.none(), seconds), seconds)
def test_late_answer_raises_the_expected_time_up_to_the_wait(
    before: float | None, waited_s: float
) -> None:
    speed = DrafterSpeed(overhead_s=before)
    speed.observe_late(waited_s)
    assert speed.overhead_s is not None
    assert (before or 0.0) <= speed.overhead_s <= max(before or 0.0, waited_s)


def test_draft_ahead_has_as_many_steps_as_fit_beside_the_pass() -> None:
    speed = DrafterSpeed()
    assert speed.steps_within(0.040) is None
    speed.observe_ahead(0.032, 0.030, 5)
    assert speed.steps_within(0.040) == 6
    speed.observe_ahead_late()
    speed.observe_ahead_late()
    assert speed.steps_within(0.040) == 5
    assert speed.steps_within(0.001) == 0
