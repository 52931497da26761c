"""Statistics of paired repetitions, and the order of policies within them."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.lab.figures import interval
from edgecosine.lab.paired_runs import balanced_order, ratio_figure, sign_flip_p


@given(st.integers(1, 13))
def test_order_is_balanced_in_positions_and_in_followers(count: int) -> None:
    repeats = count * 2 if count % 2 else count
    rows = [balanced_order(range(count), repeat) for repeat in range(repeats)]
    assert all(sorted(row) == list(range(count)) for row in rows)
    places = Counter(place for row in rows for place in enumerate(row))
    assert len(places) == count**2
    assert len(set(places.values())) == 1
    followers = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert len(followers) == count * (count - 1)
    assert len(set(followers.values())) <= 1


@given(st.integers(1, 9), st.integers(0, 20))
def test_mean_position_is_equal_after_every_two_repetitions(count: int, pair: int) -> None:
    rows = [balanced_order(range(count), 2 * pair + half) for half in (0, 1)]
    assert {sum(row.index(item) for row in rows) for item in range(count)} == {count - 1}


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1 / 32),
        ([-1.0, 2.0, 3.0], 2 / 8),
        ([1.0, -1.0], 3 / 4),
        ([0.1, 0.2, -0.3], 5 / 8),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 1.0),
        ([-1.0, -2.0, -3.0], 1.0),
    ],
)
def test_p_is_the_counted_share_of_sign_changes(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=8))
def test_p_of_both_directions_covers_all_sign_changes(differences: list[float]) -> None:
    forth, back = (sign_flip_p([sign * d for d in differences]) for sign in (1, -1))
    assert 2 ** -len(differences) <= min(forth, back) <= 1
    assert forth + back >= 1
    assert sign_flip_p([d / 3 for d in differences]) == forth


def test_p_of_many_pairs_is_estimated() -> None:
    assert sign_flip_p([1.0] * 20) == pytest.approx(1e-4, rel=0.01)
    assert 0.3 < sign_flip_p([1.0, -1.0] * 10) < 0.8


def test_p_rejects_a_true_equality_as_often_as_it_says() -> None:
    rng = random.Random(1)
    ps = [sign_flip_p([rng.gauss(0, 1) for _ in range(6)]) for _ in range(400)]
    assert statistics.fmean(p <= 0.05 for p in ps) <= 0.08


def test_interval_of_the_median_covers_it() -> None:
    rng = random.Random(3)
    found = [interval([rng.gauss(1.0, 0.2) for _ in range(9)]) for _ in range(60)]
    covered = [f.low <= 1.0 <= f.high for f in found if f.low is not None and f.high is not None]
    assert len(covered) == 60
    assert statistics.fmean(covered) >= 0.85


def test_ratio_has_its_interval_and_p_from_five_pairs_on() -> None:
    ours, theirs = [2.0, 2.2, 2.4, 2.6, 2.8], [1.0, 1.0, 1.0, 1.0, 1.0]
    figure = ratio_figure(ours, theirs)
    assert (figure.low, figure.value, figure.high, figure.n) == (2.0, 2.4, 2.8, 5)
    assert figure.p == 1 / 32
    assert ratio_figure(ours, theirs, smaller_is_better=True).p == 1.0
    few = ratio_figure(ours[:4], theirs[:4])
    assert (few.low, few.p, few.raw) == (None, None, (2.0, 2.2, 2.4, 2.6))
    assert few.text() == "runs: 2.00, 2.20, 2.40, 2.60"
    with pytest.raises(ValueError, match="zip"):
        ratio_figure(ours, theirs[1:])
