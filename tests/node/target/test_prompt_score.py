"""Drafters' scores of tokens that they read route requests, and over-reporting does not pay."""

from __future__ import annotations

from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.protocol.wire.prompt_score import PromptScore
from tests.balance.test_planner import planner
from tests.fusion.drafts import draft_of

PROMPT = tuple(range(40))
NLLS = {"python": 1.2, "legal": 4.0, "home": 6.0}


def begin(made: Planner, nlls: dict[str, float]) -> RequestState:
    """A request whose drafters have read the prompt, and drafted a wrong first token."""
    request = made.statistics.open("edgecosine", num_prompt=len(PROMPT))
    request.first_length = len(PROMPT)
    made.statistics.acceptance.observe_text(request, PROMPT)
    drafts = [
        draft_of(name, len(PROMPT), (1,), (0.5,), (), PromptScore((False,) * 39, nll))
        for name, nll in nlls.items()
    ]
    for name in nlls:
        made.statistics.observe_answer(name, 0.004, 0.002, 4)
    made.statistics.acceptance.observe_truth(request, drafts, (*PROMPT, 100))
    return request


def judge_draft(made: Planner, request: RequestState, name: str, hits: int) -> None:
    """Observe a draft of four tokens."""
    truth = range(100, 101 + hits)
    tokens = (*truth[:hits], *(0,) * (4 - hits))
    made.statistics.acceptance.observe_truth(
        request, [draft_of(name, len(PROMPT), tokens, (0.9,) * 4)], (*PROMPT, *truth)
    )


def test_first_request_goes_to_the_drafter_with_the_lowest_nll() -> None:
    made = planner()
    request = begin(made, NLLS)
    assert made.plan(request, list(NLLS), 100).drafters == ("python",)
    other = begin(made, {"python": 5.0, "legal": 1.5, "home": 5.5})
    assert made.plan(other, list(NLLS), 100).drafters == ("legal",)


def test_verification_results_outweigh_the_prediction() -> None:
    made = planner()
    request = begin(made, {"python": 1.2, "legal": 1.6})
    for _ in range(12):
        judge_draft(made, request, "python", 0)
        judge_draft(made, request, "legal", 3)
    assert made.plan(request, ["python", "legal"], 100).drafters == ("legal",)


def test_self_report_routes_a_changed_subject() -> None:
    made = planner()
    request = begin(made, NLLS)
    for _ in range(4):
        judge_draft(made, request, "python", 4)
    answer = tuple(range(100, 130))
    made.statistics.acceptance.observe_text(request, (*PROMPT, *answer[:16]))
    for _ in range(12):
        judge_draft(made, request, "python", 0)
    # One probe is as much evidence as the rounds without it.
    sequence = (*PROMPT, *answer)
    probe = draft_of("legal", len(sequence), (7,), (0.9,), (), PromptScore((True,) * 30, 0.4))
    made.statistics.acceptance.observe_truth(request, [probe], (*sequence, 7))
    assert made.plan(request, list(NLLS), 100).drafters == ("legal",)


def test_tokens_of_the_prompt_are_no_evidence_of_acceptance() -> None:
    made = planner()
    request = begin(made, NLLS)
    assert not request.rates.reported
    drafts = draft_of("home", len(PROMPT) + 4, (1,), (0.5,), (), PromptScore((True,) * 10, 0.1))
    made.statistics.acceptance.observe_truth(request, [drafts], (*PROMPT, *range(100, 105)))
    assert request.rates.reported["home"].evidence == 4


def test_over_reporting_drafter_loses_trust_and_others_keep_theirs() -> None:
    """A drafter reports an NLL of 0 and is never right. After some rounds it is not trusted, and
    the others' NLLs are not compared with its own."""
    made = planner()
    nlls = {"biased": 0.0, **NLLS}
    wasted = 0
    for _ in range(10):
        request = begin(made, nlls)
        for _ in range(30):
            plan = made.plan(request, list(nlls), 100)
            wasted += "biased" in plan.drafters
            for name in plan.drafters:
                judge_draft(made, request, name, 0 if name == "biased" else 3)
        made.statistics.close(request)
    assert wasted < 40
    request = begin(made, nlls)
    assert made.plan(request, list(nlls), 100).drafters[0] == "python"
    assert "biased" not in request.rates.predicted


def test_lowest_nll_is_not_trusted_for_long_if_all_drafters_are_bad() -> None:
    made = planner()
    wasted = []
    for _ in range(6):
        request = begin(made, NLLS)
        num_asked = 0
        for _ in range(60):
            plan = made.plan(request, list(NLLS), 100)
            num_asked += bool(plan.drafters)
            for name in plan.drafters:
                judge_draft(made, request, name, 0)
        made.statistics.close(request)
        wasted.append(num_asked)
    assert wasted[0] > 2
    assert max(wasted[2:]) <= 2


def test_over_reporting_about_answers_is_bounded() -> None:
    made = planner()
    request = begin(made, {"biased": 1.0, "python": 1.0})
    wasted, prefix = 0, PROMPT
    for _ in range(100):
        plan = made.plan(request, ["biased", "python"], 100)
        wasted += "biased" in plan.drafters
        prefix = (*prefix, *range(100, 104))
        score = PromptScore((True,) * 3, 0.0)
        over_reported = draft_of("biased", len(prefix), (1,), (0.9,), (), score)
        honest = draft_of("python", len(prefix), (100, 101, 1), (0.9,) * 3)
        made.statistics.acceptance.observe_truth(
            request, [over_reported, honest], (*prefix, 100, 101, 102)
        )
    assert wasted < 10
