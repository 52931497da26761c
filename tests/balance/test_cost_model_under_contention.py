"""Estimates of drafters that compute at the same time as others or as the target."""

from __future__ import annotations

from edgecosine.balance.cost_model import DrafterSpeed


def test_disturbed_answers_lower_estimates_and_never_raise_them() -> None:
    speed = DrafterSpeed()
    speed.observe(0.010, 0.004, 4)
    for _ in range(50):
        speed.observe(0.100, 0.040, 4, is_disturbed=True)
    assert (speed.token_s, speed.overhead_s) == (0.001, 0.006)
    speed.observe(0.005, 0.002, 4, is_disturbed=True)
    assert (speed.token_s, speed.overhead_s) == (0.0005, 0.003)


def test_first_disturbed_answer_sets_no_overhead() -> None:
    speed = DrafterSpeed()
    speed.observe(0.100, 0.040, 4, is_disturbed=True)
    assert speed.overhead_s is None
