"""The union of drafts: whole paths, within its budget, most probable first, in no order's debt."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.fuse import CalibratedDraft, reaches, union
from edgecosine.protocol.wire.tree import ROOT, TokenTree
from tests.fusion.drafts import chains, probabilities, rounds
from tests.protocol.wire.test_tree import trees

budgets = st.integers(0, 24)


def paths(tree: TokenTree) -> dict[tuple[int, ...], float]:
    """Token paths of a tree's nodes and how probable they are."""
    reach = reaches(tree)
    return {
        tuple(tree.tokens[below] for below in tree.path(node)): reach[node]
        for node in range(len(tree))
    }


def proposed(draft: CalibratedDraft) -> set[tuple[int, ...]]:
    """Token paths that a draft holds."""
    found: list[tuple[int, ...]] = []
    for node, token in enumerate(draft.tokens):
        above = draft.parents[node] if draft.parents else node - 1
        found.append((token,) if above == ROOT else (*found[above], token))
    return set(found)


@given(rounds(), budgets)
def test_union_respects_its_budget_and_holds_only_what_was_proposed(
    drafts: list[CalibratedDraft], budget: int
) -> None:
    everything = set().union(*(proposed(draft) for draft in drafts))
    tree = union(drafts, budget)
    assert len(tree) == min(budget, len(everything))
    assert set(paths(tree)) <= everything


@given(st.lists(chains(), max_size=1), st.integers(-3, 0))
def test_no_budget_gives_no_tree(drafts: list[CalibratedDraft], budget: int) -> None:
    assert len(union(drafts, budget)) == 0


@given(rounds(), budgets, st.randoms(use_true_random=False))
def test_union_is_the_same_for_any_order_of_drafts(
    drafts: list[CalibratedDraft], budget: int, random: Random
) -> None:
    shuffled = list(drafts)
    random.shuffle(shuffled)
    assert union(shuffled, budget) == union(drafts, budget)


@given(rounds(), budgets)
def test_cut_keeps_the_most_probable_nodes(drafts: list[CalibratedDraft], budget: int) -> None:
    whole, kept = paths(union(drafts, 100)), paths(union(drafts, budget))
    dropped = [reach for path, reach in whole.items() if path not in kept]
    assert max(dropped, default=0.0) <= min(kept.values(), default=1.0)
    assert all(whole[path] == reach for path, reach in kept.items())


@given(rounds(), budgets)
def test_smaller_union_is_part_of_a_larger_one(drafts: list[CalibratedDraft], budget: int) -> None:
    assert set(paths(union(drafts, budget))) <= set(paths(union(drafts, budget + 1)))


@given(trees())
def test_reach_never_rises_along_a_path(tree: TokenTree) -> None:
    reach = reaches(tree)
    for node, parent in enumerate(tree.parents):
        assert reach[node] <= (1.0 if parent == ROOT else reach[parent])


@given(chains(), budgets)
def test_union_of_one_chain_is_the_chain_cut(draft: CalibratedDraft, budget: int) -> None:
    tree = union([draft], budget)
    assert tree.is_chain
    assert tree.tokens == draft.tokens[:budget]
    assert set(tree.proposers) <= {1}


@given(rounds())
def test_proposers_are_those_whose_drafts_hold_the_node(drafts: list[CalibratedDraft]) -> None:
    tree = union(drafts, 100)
    for node in range(len(tree)):
        path = tuple(tree.tokens[below] for below in tree.path(node))
        holders = sum(1 << draft.drafter for draft in drafts if path in proposed(draft))
        assert tree.proposers[node] == holders


@given(chains(0), probabilities)
def test_agreement_raises_a_node_and_disagreement_leaves_it(
    draft: CalibratedDraft, share: float
) -> None:
    witness = CalibratedDraft(1, draft.tokens, (share,) * len(draft.tokens))
    alone, agreed = union([draft], 24), union([draft, witness], 24)
    assert agreed.tokens == alone.tokens
    for before, after in zip(alone.confidences, agreed.confidences, strict=True):
        assert before <= after <= 1.0
    stranger = CalibratedDraft(
        1, tuple(token + 10 for token in draft.tokens), witness.probabilities
    )
    apart = paths(union([draft, stranger], 24))
    assert all(apart[path] == reach for path, reach in paths(alone).items())


def test_two_doubtful_witnesses_outweigh_a_surer_one() -> None:
    drafts = [
        CalibratedDraft(0, (1,), (0.5,)),
        CalibratedDraft(1, (1,), (0.5,)),
        CalibratedDraft(2, (2,), (0.7,)),
    ]
    tree = union(drafts, 1)
    assert (tree.tokens, tree.proposers, tree.confidences) == ((1,), (0b011,), (0.75,))


def test_nobody_is_believed_without_any_doubt() -> None:
    assert union([CalibratedDraft(0, (1,), (1.0,))], 1).confidences[0] < 1.0


def test_draft_is_no_witness_for_the_trunk_that_it_goes_on_from() -> None:
    first = CalibratedDraft(0, (7,), (0.6,))
    onward = CalibratedDraft(1, (7, 8), (0.9, 0.5), trunk=1)
    tree = union([first, onward], 9)
    assert tree.tokens == (7, 8)
    assert tree.confidences == pytest.approx((0.6, 0.5))
    assert tree.proposers == (1, 2)
    again = union([first, CalibratedDraft(1, (7, 8), (0.9, 0.5))], 9)
    assert again.proposers == (3, 2)
