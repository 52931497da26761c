"""The rule of each baseline on a scripted case, by its planner."""

from __future__ import annotations

import pytest

from edgecosine.balance.baselines.batching import ByObjective, OneGroup
from edgecosine.balance.baselines.rules import (
    CosinePaper,
    SpecEdge,
    choose_batch,
    choose_team,
    cut_to_budget,
    routing_score,
)
from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.policy import BASELINES, find_policy
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round
from edgecosine.protocol.wire.tree import TokenTree
from tests.fusion.drafts import draft_of

NAMES = ("a", "b", "c", "d")
PROMPT = (1, 2, 3)


def opened(policy: str, number: int = 1) -> tuple[Planner, RequestState]:
    """A planner, and its request of that number."""
    made = Planner()
    requests = [made.statistics.open(policy) for _ in range(number)]
    return made, requests[-1]


def plan(made: Planner, request: RequestState, room: int = 100) -> Plan:
    return made.of(request).plan(request, NAMES, room)


@pytest.mark.parametrize("policy", BASELINES)
def test_no_baseline_probes_drafters_or_learns_rates(policy: str) -> None:
    made, request = opened(policy)
    drafts = [draft_of("a", len(PROMPT), (4, 5), (0.9, 0.9))]
    made.of(request).observe_truth(request, drafts, (*PROMPT, 4, 5, 6))
    assert request.rates.rates == {}
    assert made.statistics.drafter("a").record.rate.evidence == 0
    first = made.of(request).first_plan(request, NAMES, 100)
    assert first.drafters == plan(made, request).drafters
    assert not any(made.of(request).probe(request, NAMES, Plan()).drafters for _ in range(200))


def test_target_alone_asks_nobody() -> None:
    assert not plan(*opened("target-alone")).drafters


@pytest.mark.parametrize("policy", ["colocated", "specedge"])
def test_requests_are_shared_out_among_copies_of_one_drafter(policy: str) -> None:
    asked = [plan(*opened(policy, number)).drafters for number in range(1, 9)]
    assert all(len(team) == 1 for team in asked)
    assert {name for (name,) in asked[:4]} == set(NAMES)
    assert asked[:4] == asked[4:]


def test_colocated_verifies_the_most_probable_nodes_of_a_tree() -> None:
    made, request = opened("colocated:depth=3,width=2,nodes=3")
    chosen = plan(made, request)
    assert (chosen.gamma, chosen.width) == (3, 2)
    draft = draft_of("a", 3, (1, 2, 3, 4), (0.5, 0.4, 0.9, 0.1), (-1, -1, 0, 1))
    tree = made.of(request).fuse(request, Round(chosen, [draft]), 50)
    assert tree.tokens == (1, 3, 2)


def test_specinfer_merges_all_trees_without_a_cut() -> None:
    made, request = opened("specinfer:nodes=2")
    chosen = plan(made, request)
    assert chosen.drafters == NAMES
    drafts = [
        draft_of("a", 3, (1, 2, 3), (0.9, 0.9, 0.8)),
        draft_of("b", 3, (1, 7), (0.1, 0.1)),
        draft_of("c", 3, (8,), (0.01,)),
    ]
    tree = made.of(request).fuse(request, Round(chosen, drafts), 50)
    assert set(tree.tokens) == {1, 2, 7, 8}  # 3 is the third node of its own drafter


def test_specedge_drafts_ahead_below_the_most_probable_leaf_alone() -> None:
    made, request = opened("specedge")
    tree = TokenTree((1, 2, 3, 4), (-1, -1, 0, 0), (0.6, 0.3, 0.6, 0.4), (1,) * 4)
    ahead = made.of(request).ahead(request, NAMES, Plan(("b",), gamma=3), tree)
    assert ahead.drafters == ("b",)
    assert ahead.shares["b"] == bytes([0, 0, 0, 255, 0])  # root, 1, 2, 3, 4


@pytest.mark.parametrize(("left", "is_ready"), [(0, False), (2, False), (3, True), (5, True)])
def test_specedge_verifies_a_proactive_draft_that_is_deep_enough(
    left: int, *, is_ready: bool
) -> None:
    made, request = opened("specedge")
    ahead = [draft_of("a", 3, range(left), (0.9,) * left)] if left else []
    assert made.of(request).start_round(request, Plan(("a",), 6), ahead).is_ready == is_ready


def test_specedges_passes_take_one_group() -> None:
    made, request = opened("specedge", 2)
    other = made.statistics.open("specedge")
    rules = [made.of(each).batching(each) for each in (request, other)]
    assert rules == [OneGroup(0), OneGroup(1)]
    made, request = opened("specedge:groups=1")
    assert made.of(request).batching(request) is None


def test_cosine_scores_confidence_and_similarity_harmonically() -> None:
    assert routing_score(0.8, 0.4) == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert routing_score(0.8, 0.0) == routing_score(0.8, -0.2) == 0.0
    made, request = opened("cosine-paper")
    drafts = [draft_of("a", 3, (4, 9), (0.9, 0.7)), draft_of("b", 3, (8, 5), (0.3, 0.3))]
    for _ in range(20):  # a drafter with a low score is left out once the others are known
        made.of(request).observe_truth(
            request, [*drafts, *(draft_of(n, 3, (8,), (0.1,)) for n in "cd")], (*PROMPT, 4, 5)
        )
    request.accepted = 5.0
    assert plan(made, request).drafters[:2] == ("a", "b")


@pytest.mark.parametrize(("constants", "best"), [("", "b"), (":embeds=0", "a")])
def test_cosine_compares_the_embeddings_of_draft_and_committed_tokens(
    constants: str, best: str
) -> None:
    """Place by place: b's tokens are like the target's, a has one of two and another unlike it."""
    cosines = {(4, 4): 1.0, (9, 5): -0.9, (7, 4): 0.8, (8, 5): 0.9}
    made = Planner(lambda token, other: cosines[token, other])
    request = made.statistics.open(f"cosine-paper{constants}")
    drafts = [draft_of("a", 3, (4, 9), (0.5, 0.5)), draft_of("b", 3, (7, 8), (0.5, 0.5))]
    made.of(request).observe_truth(request, drafts, (*PROMPT, 4, 5, 6))
    request.accepted = 5.0
    assert made.of(request).plan(request, ("a", "b"), 100).drafters[0] == best


def test_cosine_explores_below_the_threshold_and_exploits_above() -> None:
    scores, rounds = [0.9, 0.5, 0.0], [50, 50, 0]
    assert choose_team(scores, rounds, CosinePaper().exploit, 2) == [0, 1]
    assert choose_team(scores, rounds, CosinePaper().explore, 2) == [0, 2]
    made, request = opened("cosine-paper:team_size=1,explore=1,exploit=0")
    seen = [draft_of("a", 3, (4,), (0.9,))]
    made.of(request).observe_truth(request, seen, (*PROMPT, 4))
    request.accepted = 1.0
    assert plan(made, request).drafters == ("b",)
    request.accepted = 3.0
    assert plan(made, request).drafters == ("a",)


def test_cosine_fuses_every_token() -> None:
    assert plan(*opened("cosine-paper")).interval == 1


@pytest.mark.parametrize(("busy", "length"), [(0.1, 8), (1.0, 1)])
def test_cosine_drafts_more_for_an_idle_target_and_less_for_a_busy_one(
    busy: float, length: int
) -> None:
    made, request = opened("cosine-paper")
    for _ in range(40):
        made.statistics.observe_pass(PassReport(8, busy, cycle_s=1.0))
    for _ in range(10):
        chosen = plan(made, request)
    assert chosen.gamma == length
    assert len(chosen.drafters) == (4 if length > 1 else 1)


def test_cosine_cuts_the_longest_drafts_to_the_budget() -> None:
    assert cut_to_budget([5, 2, 4], 8) == [3, 2, 3]
    assert cut_to_budget([5, 2, 4], 11) == [5, 2, 4]
    made, request = opened("cosine-paper:budget=6", number=3)
    for other in made.statistics.active:
        made.of(other).plan(other, NAMES, 100)
    assert plan(made, request).gamma == 2


def test_cosine_chooses_the_batch_by_its_objective() -> None:
    """Passes are flat up to 16 rows: a batch within them; without latency, the dear rows too."""
    rows = [8, 2, 30, 4]

    def pass_s(count: int) -> float:
        return 1.0 + 0.5 * max(0, count - 16)

    assert choose_batch(rows, 1.0, pass_s) == [1, 3, 0]
    assert choose_batch([8, 8], 0.5, lambda _: 1.0) == [0, 1]
    assert ByObjective(1.0).choose(rows, pass_s) == [1, 3, 0]


def test_constants_of_a_baseline_are_part_of_its_name() -> None:
    found = find_policy("specedge:depth=9,groups=1")
    assert found is not None
    assert found.baseline == SpecEdge(depth=9, groups=1)
    wrong = ("specedge:depth=99", "specedge:depths=3", "edgecosine:depth=3", "specedge:depth", "x")
    assert all(find_policy(name) is None for name in wrong)
