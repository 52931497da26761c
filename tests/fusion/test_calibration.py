"""Calibration: a confidence is corrected by the acceptance rate that it led to."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.calibration import BINS, MEMORY, PRIOR_WEIGHT, Calibration

shares = st.floats(0, 1)


def taught(confidence: float, accepted: int, of: int, times: int) -> Calibration:
    """A calibration with `accepted` of each `of` tokens of this confidence accepted."""
    calibration = Calibration()
    for number in islice(cycle(range(of)), times):
        calibration.observe([(confidence, number < accepted)])
    return calibration


@given(shares)
def test_unknown_drafters_confidence_is_the_prior(confidence: float) -> None:
    assert Calibration().probability(confidence) == pytest.approx(confidence)


@given(shares, st.lists(st.tuples(shares, st.booleans()), max_size=50))
def test_probability_is_a_probability(confidence: float, judged: list[tuple[float, bool]]) -> None:
    calibration = Calibration()
    calibration.observe(judged)
    assert 0.0 <= calibration.probability(confidence) <= 1.0


@pytest.mark.parametrize("accepted", [0, 1, 5, 9, 10])
@pytest.mark.parametrize("confidence", [0.0, 0.31, 0.95, 1.0])
def test_probability_converges_to_the_acceptance_rate(confidence: float, accepted: int) -> None:
    calibration = taught(confidence, accepted, of=10, times=2000)
    assert calibration.probability(confidence) == pytest.approx(accepted / 10, abs=0.01)


def test_over_confident_drafter_ends_below_a_calibrated_one() -> None:
    over_confident, honest = taught(0.99, 2, 10, 100), taught(0.6, 6, 10, 100)
    assert over_confident.probability(0.99) < 0.3
    assert honest.probability(0.6) > 0.5


def test_few_judged_tokens_move_the_prior_by_their_weight() -> None:
    calibration = taught(0.5, 1, 1, 1)
    assert calibration.probability(0.5) == (1 + PRIOR_WEIGHT * 0.5) / (1 + PRIOR_WEIGHT)


@given(st.integers(0, BINS - 1), st.integers(0, BINS - 1))
def test_judged_tokens_change_their_own_bin_only(seen: int, asked: int) -> None:
    middle = (asked + 0.5) / BINS
    probability = taught((seen + 0.5) / BINS, 0, 1, 50).probability(middle)
    assert (probability == pytest.approx(middle)) == (seen != asked)


def test_old_judged_tokens_fade() -> None:
    calibration = taught(0.9, 1, 1, int(2 * MEMORY))
    for _ in range(int(3 * MEMORY)):
        calibration.observe([(0.9, False)])
    assert calibration.probability(0.9) < 0.06
    assert calibration.judged[9] <= MEMORY
