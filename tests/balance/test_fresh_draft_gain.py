"""Whether a round waits for fresh drafts although some were made ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.fresh_draft_gain import FreshDraftGain, pays_to_wait
from edgecosine.balance.plan import MAX_NODES, CoBatchedRequests

PASS_S = [0.0, *(0.010 + 0.0002 * rows for rows in range(MAX_NODES + 2))]
NEAR, FAR = 0.003, 0.060
"""Seconds of a fresh draft."""


def learned(added: float, leaves: float, rounds: int = 100) -> FreshDraftGain:
    gain = FreshDraftGain()
    for _ in range(rounds):
        gain.observe(2.0, 2.0 + added, leaves)
    return gain


def test_gain_is_tokens_per_leaf() -> None:
    assert abs(learned(0.8, 0.4).per_leaf - 2.0) < 0.2
    assert learned(0.0, 0.9).per_leaf < 0.1


def test_round_waits_for_near_drafters_with_a_high_leaf_mass_only() -> None:
    gain = learned(1.5, 0.8)
    assert pays_to_wait([0.5], 0.9, gain, NEAR, PASS_S)
    assert not pays_to_wait([0.5], 0.9, gain, FAR, PASS_S)
    assert not pays_to_wait([0.95, 0.9, 0.85, 0.8], 0.1, gain, NEAR, PASS_S)


def test_round_does_not_wait_if_fresh_drafts_added_nothing() -> None:
    assert not pays_to_wait([0.5], 0.9, learned(0.0, 0.8), NEAR, PASS_S)


@given(
    st.lists(st.floats(0.01, 1.0), max_size=MAX_NODES).map(lambda r: sorted(r, reverse=True)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.2),
)
def test_longer_waits_and_less_leaf_mass_never_favour_waiting(
    paths: list[float], leaf_mass: float, draft_s: float
) -> None:
    gain = learned(1.0, 0.5)
    if not pays_to_wait(paths, leaf_mass, gain, draft_s, PASS_S):
        assert not pays_to_wait(paths, leaf_mass, gain, draft_s + 0.01, PASS_S)
        assert not pays_to_wait(paths, leaf_mass / 2, gain, draft_s, PASS_S)


def test_round_without_drafts_waits_unless_the_time_is_worth_more() -> None:
    gain = learned(3.0, 1.0)
    assert pays_to_wait([], 1.0, gain, 0.004, PASS_S, tokens_per_s=400.0)
    assert not pays_to_wait([], 1.0, gain, 0.009, PASS_S, tokens_per_s=400.0)


def test_wait_beside_other_requests_costs_whole_passes() -> None:
    gain, others = learned(3.0, 1.0), CoBatchedRequests(requests=7, rows=0, tokens=14.0)
    assert pays_to_wait([], 1.0, gain, 0.004, PASS_S, tokens_per_s=400.0)
    assert not pays_to_wait([], 1.0, gain, 0.004, PASS_S, others, 400.0)
