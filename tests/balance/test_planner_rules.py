"""Single rules of the planner: growing rests, contention, bookkeeping."""

from __future__ import annotations

import itertools

import pytest

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.drafter_table import FIRST_REST, LONGEST_REST
from edgecosine.balance.lock_step import waits_together
from edgecosine.balance.plan import MAX_NODES
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree
from tests.fusion.drafts import draft_of

PASS_S = 0.03
PROMPT = (0,) * 5
TRUTH = tuple(range(100, 140))


def planner() -> Planner:
    """A planner that has measured 30 ms for any pass."""
    made = Planner()
    for rows in (1, MAX_NODES + 1):
        made.statistics.observe_pass(PassReport(rows, PASS_S))
    return made


def draft(node_id: str, hits: int, size: int = 4) -> DrafterTree:
    return draft_of(node_id, len(PROMPT), TRUTH[:hits] + (0,) * (size - hits), (0.9,) * size)


def alternately(made: Planner, request: RequestState) -> None:
    """Observe two quick drafters, each right where the other is wrong."""
    for first, second in ((4, 1), (1, 4)) * 8:
        for node_id in ("a", "b"):
            made.statistics.observe_answer(node_id, 0.004, 0.002, 4)
        made.statistics.acceptance.observe_truth(
            request, [draft("a", first), draft("b", second)], PROMPT + TRUTH[:5]
        )


@pytest.mark.parametrize("num_requests", [1, 8, 9])
def test_request_whose_drafter_becomes_wrong_asks_the_others(num_requests: int) -> None:
    """Beside many others the messages would cost more than they bring."""
    made = planner()
    requests = [made.statistics.open("edgecosine") for _ in range(num_requests)]
    for node_id, hits in (("a", 4), ("b", 0), ("c", 0)):
        made.statistics.observe_answer(node_id, 0.004, 0.002, 4)
        for _ in range(20):
            made.statistics.acceptance.observe_truth(
                requests[0], [draft(node_id, hits)], PROMPT + TRUTH[:5]
            )
    assert made.plan(requests[0], ["a", "b", "c"], 100).drafters == ("a",)
    made.statistics.acceptance.observe_truth(requests[0], [draft("a", 0)], PROMPT + TRUTH[:5])
    asked = made.plan(requests[0], ["a", "b", "c"], 100).drafters
    assert set(asked) == ({"a", "b", "c"} if num_requests <= 8 else {"a"})
    made.statistics.acceptance.observe_truth(requests[0], [draft("a", 4)], PROMPT + TRUTH[:5])
    assert made.plan(requests[0], ["a", "b", "c"], 100).drafters == ("a",)


def test_steps_that_were_timed_only_ahead_are_not_free() -> None:
    made = planner()
    request = made.statistics.open("edgecosine")
    made.statistics.observe_ahead("a", 0.025, 0.02, 4)
    plan = made.plan(request, ["a"], 100)
    assert plan.draft_s == pytest.approx(plan.gamma * 0.005)


@pytest.mark.parametrize(("step_s", "waits"), [(0.002, False), (0.012, True)])
def test_requests_wait_together_where_drafts_ahead_do_not_fit_into_a_pass(
    step_s: float, waits: bool
) -> None:
    """Each would decode plainly rather than miss a pass of the other one."""
    made = planner()
    requests = [made.statistics.open("edgecosine") for _ in range(2)]
    for request in requests:
        made.statistics.observe_answer("a", 0.001 + 4 * step_s, 4 * step_s, 4)
        made.statistics.acceptance.observe_truth(request, [draft("a", 4)], PROMPT + TRUTH[:5])
        request.pace.observe(1, PASS_S)
    for request in requests:
        plan = made.plan(request, ["a"], 3)
        assert plan.drafters == ("a",)
        assert made.start_round(request, plan).is_ready == (not waits)
    made.statistics.close(requests[1])
    assert not waits_together(["a"], made.statistics)


def test_drafter_that_is_late_repeatedly_rests_ever_longer() -> None:
    made, request = planner(), RequestState()
    asked_at = []
    for number in range(8 * FIRST_REST):
        plan = made.plan(request, ["d"], 100)
        if not plan.drafters:
            plan = made.first_plan(request, ["d"], 100)
        if plan.drafters:
            asked_at.append(number)
            made.statistics.observe_late("d", 0.001)
    rests = [after - before for before, after in itertools.pairwise(asked_at)]
    assert rests[:4] == [1, FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST]
    for _ in range(20):
        made.statistics.drafter("d").back_at = 0
        made.statistics.observe_late("d", 0.001)
    assert made.statistics.drafter("d").rest == LONGEST_REST
    made.statistics.observe_answer("d", 0.004, 0.002, 4)
    assert made.statistics.drafter("d").rest == 0


def test_rounds_are_plain_if_bookkeeping_costs_more_than_drafts_save() -> None:
    made = planner()
    request = made.statistics.open("edgecosine")
    alternately(made, request)
    before = made.plan(request, ["a"], 100)
    assert before.drafters
    for _ in range(200):
        made.statistics.observe_bookkeeping(0.01, is_plain=False)
        made.statistics.observe_bookkeeping(0.01, is_plain=True)
    after = made.plan(request, ["a"], 100)
    assert 0.0 < after.speed < 0.9 * before.speed
    for _ in range(200):
        made.statistics.observe_bookkeeping(1.0, is_plain=False)
    assert not made.plan(request, ["a"], 100).drafters
    for _ in range(200):
        made.statistics.observe_bookkeeping(1.0, is_plain=True)
    assert made.plan(request, ["a"], 100).drafters


def test_plain_rounds_forget_what_speculative_rounds_once_cost() -> None:
    """Otherwise no speculative round would ever correct it."""
    made = Statistics()
    request = made.open("edgecosine")
    for _ in range(200):
        made.observe_bookkeeping(0.05, is_plain=False)
    assert made.co_batched(request).bookkeeping_s > 0.04
    for _ in range(500):
        made.observe_bookkeeping(0.001, is_plain=True)
    assert made.co_batched(request).bookkeeping_s < 0.003


@pytest.mark.parametrize(("row_s", "is_judged"), [(0.0, True), (0.001, False)])
def test_passes_that_read_prompts_judge_speculation_where_reading_is_a_small_part(
    row_s: float, is_judged: bool
) -> None:
    made = Planner()
    for rows in (1, 200):
        made.statistics.observe_pass(PassReport(rows, PASS_S + row_s * rows))
    requests = [made.statistics.open("edgecosine") for _ in range(4)]
    for _ in range(30):
        # Half of the speed of plain decoding: each pass commits one token for each request.
        cycle_s = 2 * (PASS_S + row_s * 104)
        made.statistics.observe_pass(
            PassReport(104, PASS_S + row_s * 104, cycle_s, 4, num_prompt_rows=100)
        )
    assert made.statistics.speculates(requests[0]) is not is_judged


def test_requests_that_still_read_their_prompts_do_not_count_as_slow() -> None:
    made = Planner()
    for rows in (1, 200):
        made.statistics.observe_pass(PassReport(rows, PASS_S))
    requests = [made.statistics.open("edgecosine") for _ in range(8)]
    for _ in range(30):
        # Three of them decode, each with one accepted draft token.
        made.statistics.observe_pass(
            PassReport(100, PASS_S, PASS_S, 6, num_accepted=3, num_prompt_rows=80)
        )
    assert made.statistics.speculates(requests[0])


def test_requests_that_miss_passes_while_they_wait_for_drafts_count_as_slow() -> None:
    made = Planner()
    for rows in (1, 200):
        made.statistics.observe_pass(PassReport(rows, PASS_S))
    requests = [made.statistics.open("edgecosine") for _ in range(8)]
    for _ in range(30):
        # Three of them are in each pass, each with one accepted draft token.
        made.statistics.observe_pass(PassReport(6, PASS_S, PASS_S, 6, num_accepted=3))
    assert not made.statistics.speculates(requests[0])
