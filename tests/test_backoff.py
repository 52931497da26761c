"""Delays double up to a limit, with jitter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.backoff import Backoff


@pytest.mark.parametrize(
    ("attempts", "longest_s"), [(0, 1), (1, 1), (2, 2), (4, 8), (5, 10), (999, 10)]
)
def test_delays_double_up_to_the_longest(attempts: int, longest_s: float) -> None:
    backoff = Backoff(first_s=1, longest_s=10)
    assert backoff.delay_s(attempts, chance=0.0) == longest_s
    assert backoff.delay_s(attempts, chance=1.0) == longest_s / 2


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_jitter_bounds_the_share_taken_off(attempts: int, jitter: float) -> None:
    backoff = Backoff(first_s=0.5, longest_s=20, jitter=jitter)
    full_s = backoff.delay_s(attempts, chance=0.0)
    assert full_s * (1 - jitter) <= backoff.delay_s(attempts) <= full_s
