"""Drafters on the target's machine: those that share its processor are noticed by its passes, and
asked only where that pays."""

from __future__ import annotations

import random

import pytest

from edgecosine.balance.contention import (
    FEWEST_PASSES,
    FIRST_REST,
    MOST_DISTURBED,
    MOST_PASSES,
    Contention,
)
from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.plan import (
    ALONE,
    MAX_NODES,
    Candidate,
    Plan,
    ask_around,
    choose_plan,
    worth_asking,
)
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.balance.test_planner import PASS_S, observe_draft, planner

STEP_S = 0.004
FLAT = [PASS_S] * 40
ROWS = MAX_NODES + 1
"""Of the largest pass that was measured: larger ones bound the times of smaller ones."""


def candidate(
    node_id: str, *, rate: float = 0.7, contention: float = 0.0, far_s: float = 0.0
) -> Candidate:
    return Candidate(node_id, rate, 20.0, STEP_S, far_s, True, contention=contention)


def trial(made: Contention, pass_s: float, quiet_s: float = PASS_S) -> None:
    """A trial of drafters that work beside a pass wherever they may; expected are 30 ms."""
    for _ in range(2 * MOST_PASSES):
        works = not made.rests("d")
        elapsed_s = pass_s if works else quiet_s
        made.observe(elapsed_s, elapsed_s * works, PASS_S)


def beside(pass_s: float, quiet_s: float = PASS_S) -> Contention:
    """After the trial of a new drafter."""
    made = Contention()
    made.add("d")
    trial(made, pass_s, quiet_s)
    return made


def test_work_is_the_time_in_which_any_drafter_of_the_machine_has_a_request() -> None:
    made = Contention()
    made.add("a")
    made.add("b")
    made.begin("a", 1.0)
    made.begin("b", 2.0)
    made.begin("remote", 2.0)
    made.end("a", 3.0)
    made.end("b", 5.0)
    assert made.worked_s(9.0) == 4.0
    made.end("b", 10.0)
    made.begin("a", 10.0)
    made.remove("a")
    assert made.worked_s(20.0) == 4.0


def test_drafter_that_takes_turns_with_the_passes_is_charged_its_steps() -> None:
    assert beside(2 * PASS_S).of("d") == pytest.approx(1.0)
    assert beside(2 * PASS_S).of("remote") == 0.0


@pytest.mark.parametrize("factor", [1.0, 1.2, 0.5])
def test_drafter_on_other_cores_is_not_charged(factor: float) -> None:
    made = beside(factor * PASS_S)
    assert made.of("d") == 0.0
    assert not made.rests("d")


def test_long_texts_are_not_laid_to_drafters() -> None:
    """Passes that are longer than expected, with and without a drafter's work beside them."""
    assert beside(1.8 * PASS_S, quiet_s=1.8 * PASS_S).of("d") == 0.0


@pytest.mark.parametrize(
    ("share", "noise", "fewest", "most"), [(0.0, 0.3, 0, 4), (0.2, 0.1, 0, 4), (0.5, 0.1, 190, 200)]
)
def test_passes_that_differ_by_chance_are_not_laid_to_drafters(
    share: float, noise: float, fewest: int, most: int
) -> None:
    """Of 200 drafters with this share, whose work takes half of each pass beside it."""
    draw, noticed = random.Random(1), 0
    for _ in range(200):
        made = Contention()
        made.add("d")
        for _ in range(2 * MOST_PASSES):
            quiet_s, works = PASS_S * draw.uniform(1.0 - noise, 1.0 + noise), not made.rests("d")
            work_s = 0.5 * quiet_s / (1.0 - 0.5 * share) * works
            made.observe(quiet_s + share * work_s, work_s, PASS_S)
        noticed += made.of("d") > 0.0
    assert fewest <= noticed <= most


def test_drafter_rests_in_turns_during_a_trial_and_for_long_after_one_that_it_lost() -> None:
    made = Contention()
    made.add("d")
    turns = []
    while not made.of("d"):
        turns.append(made.rests("d"))
        elapsed_s = PASS_S if made.rests("d") else 2 * PASS_S
        made.observe(elapsed_s, elapsed_s * (not made.rests("d")), PASS_S)
    assert turns == [False, True] * FEWEST_PASSES
    for _ in range(FIRST_REST):
        assert made.rests("d")
        assert not made.rests("remote")
        made.observe(PASS_S, 0.0, PASS_S)


def test_judgement_does_not_outlive_its_reason() -> None:
    """The drafter's core became its own; the next trial finds that."""
    made = beside(2 * PASS_S)
    for _ in range(FIRST_REST):
        made.observe(PASS_S, 0.0, PASS_S)
    assert made.of("d") > 0.0
    trial(made, PASS_S)
    assert made.of("d") == 0.0
    assert not made.rests("d")


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_trial_whose_drafters_never_rest_ends_in_vain(share: float) -> None:
    """Other work takes this share of each pass, also where the drafter may do nothing ahead."""
    made = Contention()
    made.add("d")
    made.observe(2 * PASS_S, PASS_S, PASS_S)
    for _ in range(MOST_DISTURBED):
        assert made.rests("d")
        made.observe(2 * PASS_S, share * 2 * PASS_S, PASS_S)
    assert not made.rests("d")
    assert made.of("d") == 0.0


def contended(factor: float = 2.0) -> Planner:
    """Passes became longer by this factor when a drafter worked beside them."""
    made = planner()
    made.statistics.add_link("d", is_beside=True)
    for number in range(2 * MOST_PASSES):
        pass_s, works = (PASS_S, 0.0) if number % 2 else (factor * PASS_S, 1.0)
        made.statistics.observe_pass(PassReport(ROWS, pass_s, beside_s=works * pass_s))
    return made


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 1.0), (1.2, 1.2)])
def test_only_delays_that_are_charged_to_drafters_are_no_part_of_the_time_of_passes(
    factor: float, expected: float
) -> None:
    made, pass_s = contended(factor), factor * PASS_S
    for _ in range(60):
        made.statistics.observe_pass(PassReport(ROWS, pass_s, beside_s=pass_s))
    assert made.statistics.pass_s(ROWS) == pytest.approx(expected * PASS_S, rel=0.05)


def test_drafter_that_shares_the_processor_drafts_nothing_ahead() -> None:
    made, request, plan = contended(), RequestState(), Plan(drafters=("d", "far"), gamma=4)
    assert made.ahead(request, ["d", "far"], plan, EMPTY_TREE).drafters == ("far",)
    made.statistics.remove_link("d")
    assert made.ahead(request, ["d", "far"], plan, EMPTY_TREE).drafters == ("d", "far")


def test_drafter_that_shares_a_processor_with_free_rows_drafts_wider_trees() -> None:
    for made, is_wider in ((contended(), True), (planner(), False)):
        request = RequestState()
        for _ in range(5):
            observe_draft(made, request, "d", hits=4)
        plan = made.plan(request, ["d"], 100)
        assert plan.drafters == ("d",)
        assert (plan.width > request.policy.width) == is_wider


def test_of_two_drafters_that_are_as_quick_the_one_with_its_own_processor_is_asked() -> None:
    shares, other = candidate("a", rate=0.8, contention=1.0), candidate("b", rate=0.79)
    assert choose_plan([shares, other], FLAT, 100, overlap=0.9).drafters == ("b",)
    far = candidate("b", rate=0.8, far_s=3 * PASS_S)
    assert choose_plan([shares, far], FLAT, 100, overlap=0.5).drafters == ("a",)


def test_drafter_that_would_not_lead_if_it_were_the_best_is_not_probed() -> None:
    shares, other = candidate("a", rate=0.3, contention=1.0), candidate("b")
    assert worth_asking([shares, other], FLAT, ALONE, 0.9) == [other]
    far = candidate("b", far_s=3 * PASS_S)
    assert worth_asking([shares, far], FLAT, ALONE, 0.5) == [shares, far]
    assert worth_asking([shares], FLAT, ALONE, 0.9) == [shares]


def test_request_in_doubt_asks_no_drafter_for_which_it_would_wait_in_vain() -> None:
    lead = candidate("lead", contention=1.0)
    plan = choose_plan([lead], FLAT, 100)
    others = [candidate("near"), candidate("far", far_s=1.0), candidate("b", contention=1.0)]
    assert ask_around(plan, [lead, *others], 4).drafters == ("lead", "near")
