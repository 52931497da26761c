"""Metrics: every round, draft token and drafter counts once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.plan import Plan
from edgecosine.engine.base import VerificationResult
from edgecosine.engine.target.acceptance import walk
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.protocol.api.result import DrafterShare
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.fusion.drafts import draft_of, rounds, union

NAMES = ["a", "b", "c", "d"]


@given(
    st.lists(st.tuples(rounds(), st.lists(st.integers(0, 2), min_size=9, max_size=9)), max_size=6)
)
def test_counts_add_up(played: list[tuple[list[DrafterTree], list[int]]]) -> None:
    counts = RequestMetrics()
    lengths, sizes = [], []
    for drafts, truth in played:
        tree = union(drafts, 12)
        result = walk(tree, lambda _, accepted, truth=truth: truth[len(accepted)])  # type: ignore[misc]
        counts.count_round(tree, NAMES[: len(drafts)], result)
        lengths.append(len(result.path))
        sizes.append(len(tree))
    metrics = counts.metrics()
    assert metrics.num_rounds == len(played)
    assert metrics.num_accepted_tokens == sum(lengths)
    assert metrics.num_draft_tokens == sum(sizes)
    assert len(metrics.acceptance_histogram) == 1 + max(lengths, default=0)
    shares = metrics.drafters.values()
    assert all(share.accepted <= share.proposed for share in shares)
    assert metrics.num_accepted_tokens <= sum(share.accepted for share in shares)
    assert metrics.num_draft_tokens <= sum(share.proposed for share in shares)


def test_token_that_two_drafters_propose_counts_for_both() -> None:
    counts = RequestMetrics()
    drafts = [draft_of("a", 0, (1, 2), (0.9, 0.9)), draft_of("b", 0, (1, 3), (0.9, 0.5))]
    counts.count_round(union(drafts, 9), ["a", "b"], VerificationResult((0, 1), 7))
    counts.count_round(EMPTY_TREE, [], VerificationResult((), 7))
    counts.late["c"] += 1
    metrics = counts.metrics()
    assert metrics.acceptance_histogram == (1, 0, 1)
    assert metrics.num_draft_tokens == 3
    assert metrics.drafters == {
        "a": DrafterShare(proposed=2, accepted=2),
        "b": DrafterShare(proposed=2, accepted=1),
        "c": DrafterShare(late=1),
    }


def test_plans_count_for_their_first_drafter() -> None:
    counts = RequestMetrics()
    for drafters in ((), ("b", "a"), ("a",), ("b",), ("b", "c")):
        counts.count_plan(Plan(drafters, reason=f"of {len(drafters)}"), is_ready=drafters != ("a",))
    metrics = counts.metrics()
    assert metrics.drafters == {"a": DrafterShare(led=1), "b": DrafterShare(led=3, first=1)}
    assert metrics.plan == "of 2"
    assert (metrics.num_speculative_rounds, metrics.num_ahead_rounds) == (4, 3)


def test_nothing_counted_is_no_round() -> None:
    metrics = RequestMetrics().metrics()
    assert (metrics.num_rounds, metrics.num_accepted_tokens) == (0, 0)
    assert metrics.acceptance_histogram == (0,)
