"""Shares of endpoints: each has one owner, loads follow strengths, and shared drafts cover more."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.draft_tree import DraftTree
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.endpoints import OWN, endpoint_probabilities, fan_out
from edgecosine.protocol.wire.tree import ROOT, TokenTree, chain
from tests.fusion.drafts import draft_of
from tests.protocol.wire.test_tree import trees

LENGTH = 10
CHAIN = chain((1, 1, 1, 1), (0.8, 0.8, 0.8, 0.8))


@given(trees())
def test_endpoint_probabilities_of_a_chain_sum_to_one(tree: TokenTree) -> None:
    ends = endpoint_probabilities(tree)
    assert len(ends) == 1 + len(tree)
    assert all(end >= 0.0 for end in ends)
    if tree.is_chain:
        assert sum(ends) == pytest.approx(1.0)


def test_endpoint_probabilities_follow_path_probabilities() -> None:
    tree = TokenTree((1, 2, 3), (-1, -1, 0), (0.6, 0.3, 0.5), (1, 1, 1))
    assert endpoint_probabilities(tree) == pytest.approx([0.1, 0.3, 0.3, 0.3])


@given(trees(), st.lists(st.floats(0.01, 100), min_size=1, max_size=4))
def test_every_endpoint_has_one_owner(tree: TokenTree, strengths: list[float]) -> None:
    shares = fan_out(tree, strengths)
    assert len(shares) == len(strengths)
    for endpoint in range(1 + len(tree)):
        assert [own[endpoint] for own in shares].count(OWN) == 1


def test_stronger_drafter_owns_more_probability() -> None:
    ends = endpoint_probabilities(CHAIN)

    def load(own: bytes) -> float:
        return sum(end for end, byte in zip(ends, own, strict=True) if byte == OWN)

    even, strong = fan_out(CHAIN, [1.0, 1.0]), fan_out(CHAIN, [5.0, 1.0])
    assert load(even[0]) == pytest.approx(load(even[1]), abs=0.25)
    assert load(strong[0]) > 0.7 > load(even[0])


def draft_tokens_after(path: Sequence[int]) -> DraftTokens:
    """Any drafter's tokens after a path: four, one of them 1."""
    which = zlib.crc32(bytes(path)) % 3
    return DraftTokens([1, 2, 3, 4], [(0.5, 0.4, 0.3)[which], 0.25, 0.15, 0.1])


def draft_ahead(tree: TokenTree, shares: Sequence[float], num_steps: int) -> DrafterTree:
    """The draft of a drafter that reads two nodes in each step."""
    drafted = DraftTree(LENGTH)
    drafted.add_children(ROOT, draft_tokens_after(()))

    nodes = drafted.seed_with(tree, shares)
    for _ in range(num_steps):
        for node in nodes or drafted.most_probable(2):
            drafted.read(node)
            drafted.add_children(
                node, draft_tokens_after([drafted.nodes.token[at] for at in drafted.path(node)])
            )
        nodes = []
    result = drafted.proposal(64)
    return draft_of("d", LENGTH, result.tokens, result.confidences, result.parents)


def coverage(drafts: Sequence[DrafterTree], tree: TokenTree) -> float:
    """Probability that two tokens are drafted after the verification result."""
    ends, found = endpoint_probabilities(tree), 0.0
    for endpoint, end in enumerate(ends):
        nodes = tree.path(endpoint - 1) if endpoint else ()
        accepted = [tree.tokens[node] for node in nodes]
        draft_tokens = draft_tokens_after(accepted)
        for bonus, share in zip(draft_tokens.tokens, draft_tokens.confidences, strict=True):
            if tree.child(nodes[-1] if nodes else ROOT, bonus) is not None:
                continue
            text = (*[0] * LENGTH, *accepted, bonus)
            lefts = [draft.after(text) for draft in drafts]
            found += end * share * any(left is not None for left in lefts)
    return found


@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_shared_endpoints_cover_more_results(num_steps: int) -> None:
    alike = [draft_ahead(CHAIN, (), num_steps) for _ in range(2)]
    parts = [[byte / 255 for byte in own] for own in fan_out(CHAIN, [1.0, 1.0])]
    shared = [draft_ahead(CHAIN, part, num_steps) for part in parts]
    assert coverage(alike, CHAIN) == coverage(alike[:1], CHAIN) > 0.0
    assert coverage(shared, CHAIN) > 1.1 * coverage(alike, CHAIN)
