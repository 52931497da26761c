"""Trials of lone requests cost a hundredth of their rounds, and go on where they pay."""

from __future__ import annotations

import random

import pytest

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.plan import TRIAL_GAMMA
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.speculation_switch import Speed
from edgecosine.balance.trials import (
    CERTAIN_LOSS,
    ENOUGH_ROUNDS,
    FEWEST_ROUNDS,
    FIRST_CREDIT,
    FIRST_REST,
    LARGEST_CREDIT,
    LARGEST_DEBT,
    LARGEST_LOSS,
    LARGEST_PRICE,
    LEAST_SHARE,
    LONGEST_STRETCH,
    REQUEST_LOSS,
    REQUEST_SHARE,
    TRIAL_SHARE,
    PlainRound,
    Trial,
    TrialBudget,
)

PLAIN_S = 0.005
TOKENS = 128


def measured_budget() -> TrialBudget:
    plain = PlainRound()
    plain.observe(PLAIN_S)
    return TrialBudget(plain)


def spend(budget: TrialBudget, requests: int, gain: float) -> tuple[float, int]:
    """Requests that speculate whenever they may, at `gain` times the speed of plain rounds; returns
    the plain rounds lost and the number of speculative rounds."""
    lost, num_tried, rng = 0.0, 0, random.Random(0)
    for _ in range(requests):
        trial, left = Trial(), TOKENS
        while left:
            left -= 1
            if budget.affords(trial, left):
                num_tried += 1
                lost += 1 / gain - 1
                budget.observe_trial(trial, 1, PLAIN_S / gain * rng.uniform(0.8, 1.2))
            else:
                budget.observe_plain(trial)
    return lost, num_tried


@pytest.mark.parametrize("gain", [0.3, 0.6, 0.9])
def test_trials_cost_the_first_credit_and_a_hundredth(gain: float) -> None:
    requests = 100
    lost, num_tried = spend(measured_budget(), requests, gain)
    assert num_tried > 0
    assert lost <= FIRST_CREDIT + LARGEST_LOSS + 1.1 * TRIAL_SHARE * requests * TOKENS


def test_one_request_pays_a_small_share_of_its_own_rounds() -> None:
    lost, _ = spend(measured_budget(), 1, 0.5)
    assert 0.0 < lost <= REQUEST_LOSS + REQUEST_SHARE * TOKENS + 1.5


def test_faster_speculation_uses_up_no_credit() -> None:
    lost, num_tried = spend(measured_budget(), 10, 1.2)
    assert num_tried == 10 * TOKENS
    assert lost < 0.0


def test_vain_trials_become_rarer_until_drafters_change() -> None:
    budget = measured_budget()
    spend(budget, 50, 0.5)
    assert budget.share == LEAST_SHARE
    lost, _ = spend(budget, 100, 0.5)
    assert lost <= 2 * LEAST_SHARE * 100 * TOKENS + LARGEST_LOSS
    budget.reconsider(has_new_drafter=True)
    assert budget.share == TRIAL_SHARE
    assert budget.num_probes == 1


def test_probes_after_costly_ones_need_their_price() -> None:
    """A drafter that reads a text slows forty rounds; another text's gains pay for it once."""
    budget, num_probes = measured_budget(), list[int]()
    for _ in range(20):
        trial, asked = Trial(), 0
        for _ in range(TOKENS):
            if budget.num_probes:
                asked += 1
                for _ in range(40):
                    budget.observe_trial(trial, 1, 1.5 * PLAIN_S)
            budget.observe_plain(trial)
        num_probes.append(asked)
    assert num_probes[0] == 1
    assert sum(num_probes) <= 2
    for _ in range(100):
        budget.observe_trial(Trial(), 2, PLAIN_S)
    budget.observe_plain(Trial())
    assert budget.num_probes == LARGEST_CREDIT


def test_drafters_are_asked_again_within_a_bounded_time_whatever_was_lost() -> None:
    """Speculation that stopped for good could not find out that drafters have become quicker."""
    budget = measured_budget()
    for _ in range(200):
        trial = Trial()
        budget.observe_trial(trial, 1, 100 * PLAIN_S)
        budget.observe_trial(trial, 1, 100 * PLAIN_S)
        budget.observe_plain(trial)
    assert not budget.num_probes
    assert budget.share == LEAST_SHARE
    num_rounds = 0
    while not budget.num_probes:
        budget.observe_plain(Trial())
        num_rounds += 1
    assert num_rounds <= (LARGEST_DEBT + LARGEST_PRICE) / LEAST_SHARE + 1


def test_gains_pay_for_the_trials_of_some_requests_that_lose() -> None:
    """Otherwise two of them end the speculation of all that follow."""
    budget = measured_budget()
    for _ in range(40):
        budget.observe_trial(Trial(), 3, PLAIN_S)
    for _ in range(4):
        trial = Trial()
        budget.observe_trial(trial, 1, 5 * PLAIN_S)
        budget.observe_plain(trial)
    assert budget.num_probes


def test_slower_speculation_rests() -> None:
    budget, trial = measured_budget(), Trial()
    slow = Speed(tokens=1, seconds=1.0, num_passes=FEWEST_ROUNDS)
    assert "slower" in (budget.why_plain(trial, slow, TOKENS, ["a"], lambda: True) or "")
    assert budget.why_plain(trial, Speed(), TOKENS, ["a"], lambda: True) == "at rest"


def test_certain_plan_needs_no_credit() -> None:
    budget, trial = measured_budget(), Trial()
    while budget.credit > 0.0:
        budget.observe_trial(Trial(), 1, 2 * PLAIN_S)
    assert budget.why_plain(trial, Speed(), TOKENS, ["a"], lambda: True) is None
    assert budget.why_plain(trial, Speed(), TOKENS, ["a"], lambda: False) == "trials are used up"
    assert trial.is_plain


def test_certain_plan_that_loses_is_given_up_within_a_few_rounds() -> None:
    budget, trial, num_rounds = measured_budget(), Trial(), 0
    while budget.why_plain(trial, Speed(), TOKENS, ["a"], lambda: True) is None:
        budget.observe_trial(trial, 1, 2 * PLAIN_S)
        num_rounds += 1
    assert num_rounds < CERTAIN_LOSS
    assert budget.why_plain(Trial(), Speed(), TOKENS, ["a"], lambda: True) is None


def test_certain_plans_may_lose_ever_less_while_they_lose() -> None:
    budget, lost = measured_budget(), list[int]()
    for _ in range(5):
        trial = Trial()
        while budget.why_plain(trial, Speed(), TOKENS, ["a"], lambda: True) is None:
            budget.observe_trial(trial, 1, 2 * PLAIN_S)
        lost.append(trial.num_rounds)
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] <= 2 < lost[0]


@pytest.mark.parametrize("speedup", [0.5, 0.95, 1.3])
def test_measured_pace_settles_whether_speculation_is_faster(speedup: float) -> None:
    budget, pace, known = measured_budget(), Speed(), list[bool | None]()
    for _ in range(ENOUGH_ROUNDS):
        known.append(budget.settle(Trial(), pace))
        pace.observe(2, 2 * PLAIN_S / speedup)
    known.append(budget.settle(Trial(), pace))
    assert known[:FEWEST_ROUNDS] == [None] * FEWEST_ROUNDS
    assert known[FEWEST_ROUNDS] is (False if speedup == 0.5 else None)
    assert known[-1] is (speedup > 1.0)


def test_rounds_are_charged_by_an_estimate_before_plain_rounds_were_measured() -> None:
    plain, trial = PlainRound(estimated_s=PLAIN_S), Trial()
    budget = TrialBudget(plain)
    budget.observe_trial(trial, 1, 3 * PLAIN_S)
    assert trial.lost == pytest.approx(2.0)
    plain.observe(3 * PLAIN_S)
    budget.observe_trial(trial, 1, 3 * PLAIN_S)
    assert trial.lost == pytest.approx(2.0)


def test_nothing_is_charged_before_passes_were_timed() -> None:
    budget, trial, pace = TrialBudget(PlainRound()), Trial(), Speed()
    for _ in range(100):
        budget.observe_trial(trial, 1, 1.0)
        pace.observe(1, 1.0)
    assert budget.credit == FIRST_CREDIT
    assert budget.settle(trial, pace) is None


def test_rests_and_stretches_grow_and_evidence_ends_stretches_alone() -> None:
    trial, lengths = Trial(), []
    for _ in range(10):
        trial.stretch_out()
        lengths.append(trial.plain_left)
    assert lengths == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert max(lengths) == LONGEST_STRETCH
    trial.begin_rest()
    trial.reconsider()
    assert trial.is_plain
    for _ in range(FIRST_REST):
        trial.count_plain()
    assert not trial.is_plain
    trial.begin_rest()
    assert trial.rest_left == 2 * FIRST_REST


def test_request_beside_which_no_plan_pays_is_planned_ever_less_often() -> None:
    made = Planner()
    request = made.statistics.open("edgecosine")
    num_planned = 0
    for _ in range(TOKENS):
        if not made.is_plain(request):
            num_planned += 1
            assert not made.plan(request, [], 100).drafters
    assert num_planned <= 8
    made.statistics.add_link("new")
    assert not made.is_plain(request)


@pytest.mark.parametrize("rate", [0.05, 0.9])
def test_without_credit_only_a_drafter_is_asked_that_is_sure_to_pay(rate: float) -> None:
    made = planner_with_passes(row_s=0.0)
    request = made.statistics.open("edgecosine")
    budget = made.statistics.budget(request)
    assert budget is not None
    budget.credit = 0.0
    for name in ("a", "b"):
        made.statistics.observe_answer(name, 0.002, 0.001, 4)
    request.rates.observe_report("b", round(20 * rate), round(20 * (1 - rate)))
    asked = made.first_plan(request, ["a", "b"], TOKENS).drafters
    assert asked == (("b",) if rate > 0.5 else ())


@pytest.mark.parametrize(("row_s", "speculates"), [(0.0, True), (PLAIN_S, False)])
def test_many_requests_begin_to_speculate_where_further_rows_are_cheap(
    row_s: float, *, speculates: bool
) -> None:
    made = planner_with_passes(row_s)
    requests = [made.statistics.open("edgecosine") for _ in range(16)]
    assert made.statistics.speculates(requests[0]) is speculates


def planner_with_passes(row_s: float) -> Planner:
    made = Planner()
    for rows in (1, 16, 64, 128):
        made.statistics.observe_pass(PassReport(rows, PLAIN_S + row_s * (rows - 1)))
    return made


def judged_request(made: Planner, hits: int) -> RequestState:
    """A lone request that has seen so many accepted tokens of one drafter's drafts."""
    made.statistics.observe_answer("a", 0.001, 0.0008, 4)
    request = made.statistics.open("edgecosine")
    request.rates.predicted = {"a": 0.95}
    request.rates.observe("a", hits, 0)
    return request


@pytest.mark.parametrize("hits", [4, 30])
def test_trials_are_short_until_the_drafter_is_certain_to_pay(hits: int) -> None:
    """A prediction from the prompt makes nothing certain."""
    made = planner_with_passes(row_s=0.0)
    plan = made.plan(judged_request(made, hits), ["a"], TOKENS)
    assert plan.drafters == ("a",)
    assert (plan.gamma <= TRIAL_GAMMA) is (hits == 4)


def test_drafter_whose_steps_were_never_timed_drafts_little() -> None:
    made = planner_with_passes(row_s=0.0)
    made.statistics.observe_answer("a", 0.05, 0.048, 4, 0)
    requests = [made.statistics.open("edgecosine") for _ in range(2)]
    requests[0].rates.observe("a", 30, 0)
    assert made.plan(requests[0], ["a"], TOKENS).gamma <= TRIAL_GAMMA
    made.statistics.observe_answer("a", 0.003, 0.002, 4)
    assert made.plan(requests[0], ["a"], TOKENS).gamma > TRIAL_GAMMA
