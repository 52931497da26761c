"""Drafts after longer committed text, and their comparison with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.protocol.wire.tree import ROOT
from tests.fusion.drafts import draft_of


@st.composite
def drafter_trees(draw: st.DrawFn) -> DrafterTree:
    """Trees after three tokens, siblings different and in order of confidence, or chains."""
    size = draw(st.integers(0, 10))
    if draw(st.booleans()):
        tokens = draw(st.tuples(*[st.integers(0, 3)] * size))
        return draft_of("d", 3, tokens, (0.5,) * size)
    tokens, parents = list[int](), list[int]()
    for _ in range(size):
        parent, token = draw(st.integers(ROOT, len(tokens) - 1)), draw(st.integers(0, 3))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    size = len(tokens)
    confidences = tuple(1 - node / 20 for node in range(size))
    return draft_of("d", 3, tokens, confidences, parents)


def paths(draft: DrafterTree) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for node, token in enumerate(draft.tree.tokens):
        above = draft.tree.parents[node]
        found.append((token,) if above == ROOT else (*found[above], token))
    return set(found)


texts = st.lists(st.integers(0, 3), max_size=6)


@given(drafter_trees(), texts)
def test_subtree_after_committed_tokens_is_what_was_below_them(
    draft: DrafterTree, since: list[int]
) -> None:
    committed = [9, 9, 9, *since]
    left = draft.after(committed)
    size = len(since)
    below = {p[size:] for p in paths(draft) if len(p) > size and list(p[:size]) == since}
    assert (paths(left) if left else set()) == below
    if left:
        assert left.prefix_len == len(committed)
        assert all(left.tree.parents[node] < node for node in range(len(left)))


@given(drafter_trees(), texts)
def test_covers_is_the_longest_path_of_the_truth(draft: DrafterTree, truth: list[int]) -> None:
    held = paths(draft)
    expected = max(n for n in range(len(truth) + 1) if n == 0 or tuple(truth[:n]) in held)
    assert draft.compare(truth).covered == expected


@given(drafter_trees(), texts)
def test_judged_nodes_are_those_with_an_accepted_parent(
    draft: DrafterTree, truth: list[int]
) -> None:
    found, tree = draft.compare(truth), draft.tree
    accepted = [tuple(truth[:depth]) for depth in range(min(len(truth), found.covered + 1))]
    tokens = {node: tuple(tree.tokens[n] for n in tree.path(node)) for node in range(len(draft))}
    assert sorted(found.judged) == sorted(
        (tree.confidences[node], path[-1] == truth[len(path) - 1])
        for node, path in tokens.items()
        if path[:-1] in accepted
    )


@given(drafter_trees(), texts)
def test_best_path_is_right_up_to_its_first_rejection(draft: DrafterTree, truth: list[int]) -> None:
    best, found = draft.chain().tree.tokens, draft.compare(truth)
    right = [ours == theirs for ours, theirs in zip(best, truth, strict=False)]
    assert found.hits == [*right, False].index(False)
    has_rejection = False in right or bool(truth and not best)
    assert found.misses == has_rejection


@given(drafter_trees())
def test_chain_is_a_path_of_it(draft: DrafterTree) -> None:
    chain = draft.chain()
    assert bool(len(chain)) == bool(len(draft))
    assert len(chain) == 0 or chain.tree.tokens in paths(draft)


@pytest.mark.parametrize(
    ("truth", "hits", "misses"),
    [
        ((1, 2), 2, 0),
        ((1, 3), 1, 1),
        ((4,), 0, 1),
        ((5,), 0, 1),
        ((1, 2, 6), 2, 0),
        ((), 0, 0),
    ],
)
def test_best_continuation_counts_and_its_siblings_do_not(
    truth: tuple[int, ...], hits: int, misses: int
) -> None:
    draft = draft_of("d", 0, (1, 4, 5, 2), (0.6, 0.2, 0.1, 0.9), (-1, -1, -1, 0))
    found = draft.compare(truth)
    assert (found.hits, found.misses) == (hits, misses)


def test_judged_tokens_have_confidences() -> None:
    draft = draft_of("d", 0, (1, 4, 2), (0.6, 0.2, 0.9), (-1, -1, 0))
    assert draft.compare((1, 7)).judged == [(0.6, True), (0.2, False), (0.9, False)]


def test_empty_draft_is_a_miss() -> None:
    found = draft_of("d", 0, (), ()).compare((1, 2))
    assert (found.hits, found.misses) == (0, 1)


def test_draft_below_a_trunk_is_judged_by_its_own_tokens() -> None:
    seeded = draft_of("d", 3, (7, 8, 9, 5), (0.5, 0.5, 0.9, 0.9), trunk=2)
    own = seeded.own((0, 0, 0, 7, 8, 9, 6))
    assert own == draft_of("d", 5, (9, 5), (0.9, 0.9), (-1, 0))
    assert own is not None
    found = own.compare((9, 6))
    assert (found.hits, found.misses) == (1, 1)
    assert seeded.own((0, 0, 0, 7, 1, 9, 5)) is None
    assert seeded.own((0, 0, 0, 7)) is None
    left = seeded.after((0, 0, 0, 7))
    assert left is not None
    assert left.trunk == 1
    assert left.own((0, 0, 0, 7, 8)) == own
