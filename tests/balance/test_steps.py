"""Rounds step by step: the best interval, and when they are used."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.plan import MAX_GAMMA
from edgecosine.balance.speculation_switch import Speed
from edgecosine.balance.steps import (
    ENOUGH_ROUNDS,
    FIRST_REST,
    PROBE_ROUNDS,
    DrafterTeam,
    StepwiseGain,
    best_steps,
)
from tests.balance.test_plan import MEMORY_BOUND

seconds = st.floats(0, 0.1)


def team(exchange_s: float, first_rate: float = 0.9, rate: float = 0.6) -> DrafterTeam:
    return DrafterTeam(2, first_rate, rate, exchange_s, 0.001)


@given(st.floats(0, 1), st.floats(0, 1), seconds, seconds, st.integers(0, 40))
def test_pieces_are_at_least_two_and_their_time_is_counted(
    first_rate: float, rate: float, exchange_s: float, token_s: float, room: int
) -> None:
    steps = best_steps(DrafterTeam(2, first_rate, rate, exchange_s, token_s), MEMORY_BOUND, room)
    if steps is None:
        assert room < 3
        return
    assert 1 <= steps.interval < steps.gamma <= min(MAX_GAMMA, room - 1)
    pieces = -(-steps.gamma // steps.interval)
    assert steps.draft_s == pytest.approx(pieces * exchange_s + steps.gamma * token_s)


def test_more_expensive_exchanges_make_longer_pieces() -> None:
    found = [best_steps(team(s), MEMORY_BOUND, 100) for s in (0.0, 0.004, 0.016, 0.1)]
    intervals = [steps.interval for steps in found if steps is not None]
    assert intervals[0] == 1
    assert intervals == sorted(intervals)
    assert intervals[2] > 1
    speeds = [steps.speed for steps in found if steps is not None]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[3] < 1 / MEMORY_BOUND[1]


def whole(speed: float, num_rounds: int = ENOUGH_ROUNDS) -> Speed:
    """The measured speed of rounds fused once."""
    measured = Speed()
    for _ in range(num_rounds):
        measured.observe(1, 1 / speed)
    return measured


def test_no_probe_before_enough_rounds_fused_once() -> None:
    assert not StepwiseGain().wants(1000.0, whole(10.0, ENOUGH_ROUNDS - 1))
    assert not StepwiseGain().wants(10.0, whole(10.0))
    assert StepwiseGain().wants(1000.0, whole(10.0))


@pytest.mark.parametrize(("kept", "adopted"), [(1.0, True), (0.6, True), (0.4, False)])
def test_probe_decides_by_the_measured_speed(kept: float, *, adopted: bool) -> None:
    stepping, before = StepwiseGain(), whole(100.0)
    for _ in range(PROBE_ROUNDS):
        assert stepping.wants(200.0, before)
        stepping.observe(4, 4 / (kept * 200.0), 200.0)
    assert stepping.trust == pytest.approx(kept)
    assert stepping.wants(200.0, before) is adopted


def test_failed_probes_become_rarer() -> None:
    stepping, before, probes = StepwiseGain(), whole(100.0), list[int]()
    for number in range(20 * FIRST_REST):
        if stepping.wants(200.0, before):
            probes.append(number)
            stepping.observe(1, 1 / 50.0, 200.0)
    firsts = probes[::PROBE_ROUNDS]
    pauses = [after - start for start, after in itertools.pairwise(firsts)]
    assert len(pauses) >= 2
    assert pauses == sorted(pauses)
    assert pauses[-1] > 1.5 * pauses[0] > FIRST_REST
