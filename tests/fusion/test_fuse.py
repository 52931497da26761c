"""The union of drafts: whole paths, within its budget, most probable first, in any order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.fuse import DraftUnion, path_probabilities
from edgecosine.protocol.wire.tree import ROOT, TokenTree
from tests.fusion.drafts import chains, draft_of, probabilities, rounds, union
from tests.protocol.wire.test_tree import trees

budgets = st.integers(0, 24)


def chain(node_id: str, tokens: tuple[int, ...], *shares: float, trunk: int = 0) -> DrafterTree:
    return draft_of(node_id, 0, tokens, shares, trunk=trunk)


def paths(tree: TokenTree) -> dict[tuple[int, ...], float]:
    """Token paths of a tree's nodes and their probabilities."""
    found = path_probabilities(tree)
    return {
        tuple(tree.tokens[below] for below in tree.path(node)): found[node]
        for node in range(len(tree))
    }


def proposed(draft: DrafterTree) -> set[tuple[int, ...]]:
    """Token paths that a draft holds."""
    return set(paths(draft.tree))


@given(rounds(), budgets)
def test_union_respects_its_budget_and_holds_only_drafted_paths(
    drafts: list[DrafterTree], budget: int
) -> None:
    everything = set().union(*(proposed(draft) for draft in drafts))
    tree = union(drafts, budget)
    assert len(tree) == min(budget, len(everything))
    assert set(paths(tree)) <= everything


@given(st.lists(chains(), max_size=1), st.integers(-3, 0))
def test_no_budget_gives_no_tree(drafts: list[DrafterTree], budget: int) -> None:
    assert len(union(drafts, budget)) == 0


@given(rounds(), st.randoms(use_true_random=False))
def test_union_is_the_same_for_any_order_of_drafts(
    drafts: list[DrafterTree], random: Random
) -> None:
    shuffled = list(drafts)
    random.shuffle(shuffled)
    assert paths(union(shuffled, 100)) == pytest.approx(paths(union(drafts, 100)))


@given(rounds(), budgets)
def test_cut_keeps_the_most_probable_nodes(drafts: list[DrafterTree], budget: int) -> None:
    whole, kept = paths(union(drafts, 100)), paths(union(drafts, budget))
    dropped = [probability for path, probability in whole.items() if path not in kept]
    assert max(dropped, default=0.0) <= min(kept.values(), default=1.0)
    assert all(whole[path] == probability for path, probability in kept.items())


@given(rounds(), budgets)
def test_smaller_union_is_part_of_a_larger_one(drafts: list[DrafterTree], budget: int) -> None:
    assert set(paths(union(drafts, budget))) <= set(paths(union(drafts, budget + 1)))


@given(trees())
def test_path_probability_never_rises_along_a_path(tree: TokenTree) -> None:
    found = path_probabilities(tree)
    for node, parent in enumerate(tree.parents):
        assert found[node] <= (1.0 if parent == ROOT else found[parent])


@given(chains(), budgets)
def test_union_of_one_chain_is_the_chain_cut(draft: DrafterTree, budget: int) -> None:
    tree = union([draft], budget)
    assert tree.is_chain
    assert tree.tokens == draft.tree.tokens[:budget]
    assert set(tree.proposers) <= {1}


@given(rounds())
def test_proposers_are_the_drafts_that_hold_the_node(drafts: list[DrafterTree]) -> None:
    tree = union(drafts, 100)
    for node in range(len(tree)):
        path = tuple(tree.tokens[below] for below in tree.path(node))
        holders = sum(1 << bit for bit, draft in enumerate(drafts) if path in proposed(draft))
        assert tree.proposers[node] == holders


@given(chains(0), probabilities)
def test_agreement_raises_a_node_and_disagreement_leaves_it(
    draft: DrafterTree, share: float
) -> None:
    tokens = draft.tree.tokens
    witness = draft_of("d1", 0, tokens, (share,) * len(tokens))
    alone, agreed = union([draft], 24), union([draft, witness], 24)
    assert agreed.tokens == alone.tokens
    for before, after in zip(alone.confidences, agreed.confidences, strict=True):
        assert before <= after <= 1.0
    other = draft_of("d1", 0, [token + 10 for token in tokens], (share,) * len(tokens))
    apart = paths(union([draft, other], 24))
    assert all(apart[path] == probability for path, probability in paths(alone).items())


def test_two_uncertain_witnesses_outweigh_a_more_confident_one() -> None:
    drafts = [chain("a", (1,), 0.5), chain("b", (1,), 0.5), chain("c", (2,), 0.7)]
    tree = union(drafts, 1)
    assert (tree.tokens, tree.proposers, tree.confidences) == ((1,), (0b011,), (0.75,))


def test_own_draft_is_one_more_witness_with_bits_behind_those_of_the_drafts() -> None:
    drafts = [chain("a", (1, 2), 0.5, 0.5), chain("b", (1,), 0.5)]
    own = TokenTree((1, 3), (ROOT, 0), (0.5, 0.9), (0b01, 0b10))
    tree = DraftUnion(drafts, [each.tree.confidences for each in drafts], own).tree(10)
    assert paths(tree) == pytest.approx({(1,): 0.875, (1, 2): 0.4375, (1, 3): 0.7875})
    assert dict(zip(tree.tokens, tree.proposers, strict=True)) == {1: 0b0111, 2: 0b0001, 3: 0b1000}


def test_fresh_drafts_continue_the_leaves_of_drafters_not_of_the_own_draft() -> None:
    own = TokenTree((1, 2), (ROOT, 0), (0.5, 0.5), (1, 1))
    drafted = chain("a", (1, 3), 0.5, 0.5)
    union = DraftUnion([drafted], [drafted.tree.confidences], own)
    assert union.leaf_mass == pytest.approx(0.75 * 0.5)
    assert DraftUnion([], [], own).leaf_mass == 0.0


def test_no_node_is_certain() -> None:
    assert union([chain("a", (1,), 1.0)], 1).confidences[0] < 1.0


def test_draft_is_no_witness_for_its_trunk() -> None:
    first = chain("a", (7,), 0.6)
    tree = union([first, chain("b", (7, 8), 0.9, 0.5, trunk=1)], 9)
    assert tree.tokens == (7, 8)
    assert tree.confidences == pytest.approx((0.6, 0.5))
    assert tree.proposers == (1, 2)
    again = union([first, chain("b", (7, 8), 0.9, 0.5)], 9)
    assert again.proposers == (3, 2)
