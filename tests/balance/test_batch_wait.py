"""A pass waits only if that saves target time, and no longer than it saves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.batch_wait import ExpectedArrival, batch_wait_s

arrivals = st.lists(
    st.builds(ExpectedArrival, in_s=st.floats(-0.01, 0.1), rows=st.integers(1, 40)), max_size=8
)
curves = st.tuples(st.floats(0.0, 0.05), st.floats(0.0, 0.005))


@given(rows=st.integers(1, 40), late=arrivals, curve=curves)
def test_batch_wait_never_costs_more_than_it_saves(
    rows: int, late: list[ExpectedArrival], curve: tuple[float, float]
) -> None:
    fixed_s, row_s = curve
    wait_s = batch_wait_s(rows, late, lambda rows: fixed_s + rows * row_s)
    if wait_s is not None:
        rounding = 1e-12
        assert 0.0 <= wait_s <= fixed_s + rounding
        assert any(each.in_s <= wait_s for each in late)


def test_pass_waits_for_early_arrivals_only() -> None:
    late = [ExpectedArrival(0.002, 1), ExpectedArrival(0.5, 1), ExpectedArrival(0.001, 1)]
    assert batch_wait_s(4, late, lambda rows: 0.009 + 0.0001 * rows) == 0.002


def test_pass_does_not_wait_if_its_time_is_proportional_to_tokens() -> None:
    assert batch_wait_s(8, [ExpectedArrival(0.001, 8)], lambda rows: 0.001 * rows) is None


def test_pass_does_not_wait_before_a_measurement() -> None:
    assert batch_wait_s(1, [ExpectedArrival(0.0, 1)], lambda _: 0.0) is None
