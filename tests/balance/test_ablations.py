"""Each ablation changes its own decisions and no other one.

After the same scripted history every decision of the planner is made under `edgecosine` and under
the ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.local_draft import LocalDraft
from edgecosine.balance.plan import MAX_NODES, Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.policy import PARTS, POLICIES
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.protocol.wire.prompt_score import PromptScore
from edgecosine.protocol.wire.tree import chain
from tests.fusion.drafts import draft_of

PASS_S = 0.03
PROMPT = tuple(range(20))
TRUTH = tuple(range(100, 140))
TEAM = ("a", "b", "c")
EXPERT = "a"
"""The best drafter by all evidence; drawn routing chooses another one."""
FOLLOWS_SPEEDS = {
    "length", "deadline", "tree", "drafts ahead suffice", "text repeated", "earlier text",
}  # fmt: skip
WHOM = {"led by results", "led by nll", "led by reports"}

CHANGED: Mapping[str, set[str]] = {
    "cooperation": {"drafters asked"},
    "fusion": {"drafters in the tree"},
    "siblings": {"width", "width ahead", "siblings in the tree"},
    "routing": WHOM,
    "surprise": {"led by nll"},
    "reports": {"led by reports"},
    "calibration": {"confidences"},
    "ahead": {"asked ahead", "width ahead"},
    "adaptivity": FOLLOWS_SPEEDS,
    "repetition": {"text repeated"},
    "ngrams": {"earlier text"},
}


def draft(
    node_id: str, hits: int, size: int = 4, at: int = len(PROMPT), **more: Any
) -> DrafterTree:
    """A chain of `hits` accepted tokens and rejected ones after them."""
    tokens = TRUTH[:hits] + tuple(range(500, 500 + size - hits))
    return draft_of(node_id, at, tokens, (0.9,) * size, **more)


def judge(made: Planner, request: RequestState, node_id: str, hits: int) -> None:
    """Observe a draft with `hits` accepted tokens."""
    made.statistics.acceptance.observe_truth(
        request, [draft(node_id, hits)], PROMPT + TRUTH[: hits + 1]
    )


def experienced() -> Planner:
    """A planner with measured passes and equally quick and good drafters, each best in turn."""
    made = Planner()
    for rows in (1, 8, MAX_NODES + 1):
        made.statistics.observe_pass(PassReport(rows, PASS_S + 0.0004 * rows))
    for node_id in TEAM:
        for _ in range(8):
            made.statistics.observe_answer(node_id, 0.004, 0.002, 4)
    for number in range(12):
        request = made.statistics.open("edgecosine")
        expert = TEAM[number % 3]
        for node_id in TEAM:
            for _ in range(4):
                judge(made, request, node_id, 4 if node_id == expert else 1)
        made.statistics.close(request)
    return made


def opened(made: Planner, policy: str) -> RequestState:
    """The request under test, with the same number for each policy."""
    return made.statistics.open(policy, num_prompt=len(PROMPT))


def led_by_results(made: Planner, request: RequestState) -> object:
    for node_id in TEAM:
        for _ in range(4):
            judge(made, request, node_id, 4 if node_id == EXPERT else 1)
    return made.plan(request, TEAM, 100).drafters[0]


def led_by_nll(made: Planner, request: RequestState) -> object:
    request.first_length = len(PROMPT)
    drafts = [
        draft(node_id, 1, score=PromptScore((False,) * (len(PROMPT) - 1), nll))
        for node_id, nll in zip(TEAM, (1.0, 4.0, 4.0), strict=True)
    ]
    made.statistics.acceptance.observe_truth(request, drafts, PROMPT + TRUTH[:1])
    return made.plan(request, TEAM, 100).drafters[0]


def led_by_reports(made: Planner, request: RequestState) -> object:
    answer = PROMPT + TRUTH[:20]
    drafts = [
        draft(node_id, 0, at=len(answer), score=PromptScore((node_id == EXPERT,) * 20, 1.0))
        for node_id in TEAM
    ]
    made.statistics.acceptance.observe_truth(request, drafts, answer)
    return made.plan(request, TEAM, 100).drafters[0]


def plan_in_doubt(made: Planner, request: RequestState) -> Plan:
    """The plan after two good drafters were wrong twice, whose drafts were never made ahead."""
    request.overlap = 0.0
    for first, second in (*[(4, 1), (1, 4)] * 8, (0, 0), (0, 0)):
        drafts = [draft("a", first), draft("b", second)]
        made.statistics.acceptance.observe_truth(request, drafts, PROMPT + TRUTH[:5])
    return made.plan(request, ("a", "b"), 100)


def tree_of(made: Planner, request: RequestState) -> Any:
    """The tree of two drafts, one of them with siblings."""
    drafts = [
        draft_of("a", 5, (1, 2, 3, 4), (0.9, 0.9, 0.8, 0.02), (-1, 0, 0, 1)),
        draft_of("b", 5, (1, 9), (0.9, 0.7)),
    ]
    return made.fuse(request, Round(Plan(), drafts), 50, 0.004)


def ahead_of(made: Planner, request: RequestState) -> Plan:
    tree = chain((1, 2, 3), (0.8, 0.8, 0.8))
    return made.ahead(request, TEAM, Plan(("a", "b"), gamma=3, deadline_s=0.02), tree)


def is_ready(made: Planner, request: RequestState) -> object:
    """Whether a poor draft made ahead suffices although a fresh one is quick."""
    plan = Plan(("a",), gamma=4, draft_s=0.001, deadline_s=0.02)
    return made.start_round(request, plan, [draft_of("a", 5, (1,), (0.3,))]).is_ready


def repeated(made: Planner, request: RequestState) -> object:
    return LocalDraft(request, made.statistics).draft([1, 2, 3, 4, 1, 2, 3], 50).tokens


def remembered(made: Planner, request: RequestState) -> object:
    earlier = LocalDraft(request, made.statistics)
    for _ in range(5):
        earlier.learn([1, 2, 3, 4, 5], 1)
    return LocalDraft(request, made.statistics).draft([1, 2, 3], 50).tokens


DECISIONS: Mapping[str, Callable[[Planner, RequestState], object]] = {
    "asked first": lambda made, request: made.first_plan(request, TEAM, 100),
    "led by results": led_by_results,
    "led by nll": led_by_nll,
    "led by reports": led_by_reports,
    "drafters asked": lambda *known: len(plan_in_doubt(*known).drafters),
    "length": lambda *known: plan_in_doubt(*known).gamma,
    "width": lambda *known: plan_in_doubt(*known).width,
    "deadline": lambda *known: plan_in_doubt(*known).deadline_s,
    "tree": lambda *known: 4 in tree_of(*known).tokens,
    "siblings in the tree": lambda *known: 3 in tree_of(*known).tokens,
    "drafters in the tree": lambda *known: 9 in tree_of(*known).tokens,
    "confidences": lambda *known: tree_of(*known).confidences[0] > 0.98,
    "asked ahead": lambda *known: bool(ahead_of(*known).drafters),
    "width ahead": lambda *known: ahead_of(*known).width,
    "drafts ahead suffice": is_ready,
    "text repeated": repeated,
    "earlier text": remembered,
    "tried": lambda made, request: [
        made.probe(request, TEAM, Plan(("a",))).drafters for _ in range(20)
    ],
}
"""Decisions by name."""


def decided(policy: str) -> dict[str, object]:
    found = {}
    for name, decide in DECISIONS.items():
        made = experienced()
        found[name] = decide(made, opened(made, policy))
    return found


def test_every_part_has_an_expected_change() -> None:
    assert set(CHANGED) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_ablation_changes_only_its_own_decisions(part: str) -> None:
    whole, without = decided("edgecosine"), decided(f"edgecosine-without-{part}")
    changed = {name for name in whole if whole[name] != without[name]}
    assert changed == CHANGED[part], {name: (whole[name], without[name]) for name in changed}


@pytest.mark.parametrize("part", PARTS)
def test_ablation_differs_in_one_switch(part: str) -> None:
    whole, without = POLICIES["edgecosine"], POLICIES[f"edgecosine-without-{part}"]
    fields = [name for name in whole.__slots__ if getattr(whole, name) != getattr(without, name)]
    assert len(fields) == 2  # one is the name


def test_drawn_routing_chooses_each_drafter_for_some_requests() -> None:
    made = experienced()
    leads = []
    for _ in range(40):
        request = made.statistics.open("edgecosine-without-routing")
        plans = [made.plan(request, TEAM, 100) for _ in range(5)]
        assert len({plan.drafters[0] for plan in plans}) == 1
        leads.append(plans[0].drafters[0])
        made.statistics.close(request)
    assert min(leads.count(node_id) for node_id in TEAM) > 5
