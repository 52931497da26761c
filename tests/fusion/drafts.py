"""Draft trees for tests, and strategies for the drafts of one round."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.fuse import DraftUnion
from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import ROOT, TokenTree

probabilities = st.floats(0, 1)


def draft_of(
    node_id: str,
    prefix_len: int,
    tokens: Sequence[int],
    confidences: Sequence[float],
    parents: Sequence[int] = (),
    score: PromptScore = NO_PROMPT_SCORE,
    *,
    trunk: int = 0,
) -> DrafterTree:
    """A drafter's draft; a chain without `parents`."""
    size = len(tokens)
    above = tuple(parents) or tuple(range(ROOT, size - 1))
    tree = TokenTree(tuple(tokens), above, tuple(confidences), (0,) * size)
    return DrafterTree(node_id, prefix_len, tree, score, trunk)


def union(drafts: Sequence[DrafterTree], budget: int) -> TokenTree:
    """The union of drafts whose confidences are taken as probabilities."""
    return DraftUnion(drafts, [draft.tree.confidences for draft in drafts]).tree(budget)


@st.composite
def chains(draw: st.DrawFn, drafter: int = 0) -> DrafterTree:
    """One drafter's chain; few tokens, so that drafters agree often."""
    tokens = draw(st.lists(st.integers(0, 2), max_size=6))
    return draft_of(f"d{drafter}", 0, tokens, [draw(probabilities) for _ in tokens])


@st.composite
def wide_drafts(draw: st.DrawFn, drafter: int = 0) -> DrafterTree:
    """One drafter's tree, in topological order."""
    nodes: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 8))):
        node = draw(st.integers(ROOT, len(nodes) - 1)), draw(st.integers(0, 2))
        if node not in nodes:
            nodes.append(node)
    parents, tokens = [above for above, _ in nodes], [token for _, token in nodes]
    return draft_of(f"d{drafter}", 0, tokens, [draw(probabilities) for _ in nodes], parents)


@st.composite
def rounds(draw: st.DrawFn) -> list[DrafterTree]:
    """The drafts of up to four drafters."""
    size = draw(st.integers(0, 4))
    return [draw(chains(number) | wide_drafts(number)) for number in range(size)]
