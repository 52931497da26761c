"""A second drafter joins if its coverage is worth its rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgecosine.balance.plan import (
    choose_plan,
    expected_tokens,
)
from edgecosine.balance.second_drafter import add_drafters, expected_of_two
from tests.balance.test_plan import MEMORY_BOUND, candidate

LEAD, OTHER, THIRD = candidate("a", 0.7), candidate("b", 0.5), candidate("c", 0.5)
COMPUTE_BOUND = [0.004 * (1 + rows) for rows in range(26)]


def planned(conditional: float, most: int, pass_s: list[float]) -> tuple[str, ...]:
    drafters = [LEAD, OTHER, THIRD]
    plan = choose_plan(drafters, pass_s, 100)
    return add_drafters(plan, drafters, lambda _lead, _other: conditional, most, pass_s).drafters


@pytest.mark.parametrize(
    ("conditional", "most", "expected"),
    [(0.0, 3, 1), (0.5, 1, 1), (0.5, 2, 2), (0.5, 3, 3)],
)
def test_drafters_join_while_they_add_coverage(
    conditional: float, most: int, expected: int
) -> None:
    chosen = planned(conditional, most, MEMORY_BOUND)
    assert chosen[0] == "a"
    assert len(chosen) == expected


def test_no_drafter_joins_if_tokens_are_expensive() -> None:
    assert len(planned(0.2, 3, COMPUTE_BOUND)) <= 1


def test_coverage_is_at_most_the_drafters_own_rate() -> None:
    drafters = [LEAD, candidate("b", 0.01)]
    plan = choose_plan(drafters, MEMORY_BOUND, 100)
    assert add_drafters(plan, drafters, lambda *_: 0.9, 2, MEMORY_BOUND).drafters == ("a",)


def test_drafter_that_was_only_measured_beside_others_may_join() -> None:
    """Else none could: all answers of drafters that are only probed come beside others."""
    for beside_others_s, team in ((None, ("a",)), (OTHER.overhead_s, ("a", "b"))):
        other = replace(OTHER, is_measured=False, beside_others_s=beside_others_s)
        plan = choose_plan([LEAD], MEMORY_BOUND, 100)
        joined = add_drafters(plan, [LEAD, other], lambda *_: 0.5, 2, MEMORY_BOUND)
        assert joined.drafters == team


def test_drafters_that_are_right_in_turns_draft_further() -> None:
    lead, *others = (candidate(name, 0.5) for name in "abcd")
    alone = choose_plan([lead], MEMORY_BOUND, 100)
    team = add_drafters(alone, [lead, *others], lambda *_: 0.5, 4, MEMORY_BOUND, overlap=1.0)
    assert len(team.drafters) == 4
    assert team.gamma > alone.gamma
    assert team.deadline_s >= team.draft_s > alone.draft_s
    short = add_drafters(
        alone, [lead, *others], lambda *_: 0.5, 4, MEMORY_BOUND, overlap=1.0, longest=alone.gamma
    )
    assert short.gamma == alone.gamma


def test_plan_without_drafters_stays_plain() -> None:
    plan = choose_plan([], MEMORY_BOUND, 100)
    assert add_drafters(plan, [], lambda *_: 0.9, 2, MEMORY_BOUND) is plan


def test_overlap_raises_the_speed_over_slow_links() -> None:
    far = candidate("far", 0.8, overhead_s=0.03)
    asked = choose_plan([far], MEMORY_BOUND, 100)
    ahead = choose_plan([far], MEMORY_BOUND, 100, overlap=1.0)
    assert ahead.speed > asked.speed


rates = st.floats(0.0, 0.99)


@given(lead=rates, other=rates, conditional=rates, gamma=st.floats(0.0, 12.0))
def test_two_drafters_give_between_the_lead_alone_and_both_at_every_token(
    lead: float, other: float, conditional: float, gamma: float
) -> None:
    lead, other = max(lead, other), min(lead, other)
    conditional = min(conditional, other)
    found = expected_of_two(lead, other, conditional, gamma)
    joint = lead + (1 - lead) * conditional
    assert expected_tokens(lead, int(gamma)) - 1e-9 <= found
    assert found <= expected_tokens(joint, int(gamma) + 1) + 1e-9


@given(lead=rates, other=rates, gamma=st.integers(0, 6))
def test_two_chains_are_counted_path_by_path(lead: float, other: float, gamma: int) -> None:
    """Two drafters that err independently, and differ wherever one errs."""

    def walk(left: int, is_lead_on: bool, is_other_on: bool) -> float:
        if not left or not (is_lead_on or is_other_on):
            return 1.0
        if not (is_lead_on and is_other_on):
            rate = lead if is_lead_on else other
            return 1.0 + rate * walk(left - 1, is_lead_on, is_other_on)
        return 1.0 + sum(
            chance * walk(left - 1, *on)
            for chance, on in (
                (lead * other, (True, True)),
                (lead * (1 - other), (True, False)),
                ((1 - lead) * other, (False, True)),
            )
        )

    assert expected_of_two(lead, other, other, gamma) == pytest.approx(walk(gamma, True, True))
