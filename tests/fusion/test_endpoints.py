"""Outcomes of a verification, shared out: every one is somebody's own, the drafters' loads fit
their strength, and together they foresee more."""

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
    masses = endpoint_probabilities(tree)
    assert len(masses) == 1 + len(tree)
    assert all(mass >= 0.0 for mass in masses)
    if tree.is_chain:
        assert sum(masses) == pytest.approx(1.0)


def test_endpoint_probabilities_follow_path_probabilities() -> None:
    tree = TokenTree((1, 2, 3), (-1, -1, 0), (0.6, 0.3, 0.5), (1, 1, 1))
    assert endpoint_probabilities(tree) == pytest.approx([0.1, 0.3, 0.3, 0.3])


@given(trees(), st.lists(st.floats(0.01, 100), min_size=1, max_size=4))
def test_every_endpoint_has_one_owner(tree: TokenTree, strengths: list[float]) -> None:
    shares = fan_out(tree, strengths)
    assert len(shares) == len(strengths)
    for outcome in range(1 + len(tree)):
        assert [own[outcome] for own in shares].count(OWN) == 1


def test_stronger_drafter_owns_more_probability() -> None:
    masses = endpoint_probabilities(CHAIN)

    def load(own: bytes) -> float:
        return sum(mass for mass, byte in zip(masses, own, strict=True) if byte == OWN)

    even, strong = fan_out(CHAIN, [1.0, 1.0]), fan_out(CHAIN, [5.0, 1.0])
    assert load(even[0]) == pytest.approx(load(even[1]), abs=0.25)
    assert load(strong[0]) > 0.7 > load(even[0])


def says(path: Sequence[int]) -> DraftTokens:
    """What any drafter thinks may follow a path: four tokens, one of them 1."""
    turn = zlib.crc32(bytes(path)) % 3
    return DraftTokens([1, 2, 3, 4], [(0.5, 0.4, 0.3)[turn], 0.25, 0.15, 0.1])


def read_on(tree: TokenTree, shares: Sequence[float], num_steps: int) -> DrafterTree:
    """What a drafter answers that reads two nodes in each of so many steps."""
    growth = DraftTree(LENGTH)
    growth.add_guesses(ROOT, says(()))

    nodes = growth.lay(tree, shares)
    for _ in range(num_steps):
        for node in nodes or growth.most_probable(2):
            growth.read(node)
            growth.add_guesses(node, says([growth.nodes.token[at] for at in growth.path(node)]))
        nodes = []
    told = growth.proposal(64)
    return draft_of("d", LENGTH, told.tokens, told.confidences, told.parents)


def foreseen(proposals: Sequence[DrafterTree], tree: TokenTree) -> float:
    """Probability that a draft of two tokens is there after the verdict."""
    masses, found = endpoint_probabilities(tree), 0.0
    for outcome, mass in enumerate(masses):
        nodes = tree.path(outcome - 1) if outcome else ()
        accepted = [tree.tokens[node] for node in nodes]
        guesses = says(accepted)
        for bonus, share in zip(guesses.tokens, guesses.confidences, strict=True):
            if tree.child(nodes[-1] if nodes else ROOT, bonus) is not None:
                continue
            text = (*[0] * LENGTH, *accepted, bonus)
            lefts = [proposal.after(text) for proposal in proposals]
            found += mass * share * any(left is not None for left in lefts)
    return found


@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_shared_endpoints_cover_more_results(num_steps: int) -> None:
    alike = [read_on(CHAIN, (), num_steps) for _ in range(2)]
    parts = [[byte / 255 for byte in own] for own in fan_out(CHAIN, [1.0, 1.0])]
    shared = [read_on(CHAIN, part, num_steps) for part in parts]
    assert foreseen(alike, CHAIN) == foreseen(alike[:1], CHAIN) > 0.0
    assert foreseen(shared, CHAIN) > 1.1 * foreseen(alike, CHAIN)
