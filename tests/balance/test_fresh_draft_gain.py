"""Whether to wait for fresh drafts where some were made ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.fresh_draft_gain import FreshDraftGain, pays_to_wait
from edgecosine.balance.plan import MAX_NODES, Plan

PASS_S = [0.0, *(0.010 + 0.0002 * rows for rows in range(MAX_NODES + 2))]
NEAR = Plan(drafters=("d",), gamma=6, draft_s=0.003)
FAR = Plan(drafters=("d",), gamma=6, draft_s=0.060)


def learned(added: float, leaves: float, rounds: int = 100) -> FreshDraftGain:
    gain = FreshDraftGain()
    for _ in range(rounds):
        gain.observe(2.0, 2.0 + added, leaves)
    return gain


def test_what_is_learned_is_tokens_per_leaf() -> None:
    assert abs(learned(0.8, 0.4).per_leaf - 2.0) < 0.2
    assert learned(0.0, 0.9).per_leaf < 0.1


def test_near_drafters_are_asked_where_much_is_open_and_far_ones_are_not() -> None:
    gain = learned(1.5, 0.8)
    assert pays_to_wait([0.5], 0.9, gain, NEAR, PASS_S)
    assert not pays_to_wait([0.5], 0.9, gain, FAR, PASS_S)
    assert not pays_to_wait([0.95, 0.9, 0.85, 0.8], 0.1, gain, NEAR, PASS_S)


def test_asking_that_never_brought_anything_ends() -> None:
    assert not pays_to_wait([0.5], 0.9, learned(0.0, 0.8), NEAR, PASS_S)


@given(
    st.lists(st.floats(0.01, 1.0), max_size=MAX_NODES).map(lambda r: sorted(r, reverse=True)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.2),
)
def test_longer_waits_and_fewer_leaves_never_make_asking_better(
    paths: list[float], leaf_mass: float, draft_s: float
) -> None:
    gain, plan = learned(1.0, 0.5), Plan(drafters=("d",), gamma=6, draft_s=draft_s)
    if not pays_to_wait(paths, leaf_mass, gain, plan, PASS_S):
        slower = Plan(drafters=("d",), gamma=6, draft_s=draft_s + 0.01)
        assert not pays_to_wait(paths, leaf_mass, gain, slower, PASS_S)
        assert not pays_to_wait(paths, leaf_mass / 2, gain, plan, PASS_S)
