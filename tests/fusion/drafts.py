"""Strategies for what drafters may propose in one round."""

from __future__ import annotations

from hypothesis import strategies as st

from edgecosine.fusion.fuse import CalibratedDraft

probabilities = st.floats(0, 1)


@st.composite
def chains(draw: st.DrawFn, drafter: int = 0) -> CalibratedDraft:
    """One drafter's chain; few tokens, so that drafters agree often."""
    tokens = tuple(draw(st.lists(st.integers(0, 2), max_size=6)))
    shares = tuple(draw(probabilities) for _ in tokens)
    return CalibratedDraft(drafter, tokens, shares)


@st.composite
def wide_drafts(draw: st.DrawFn, drafter: int = 0) -> CalibratedDraft:
    """One drafter's tree, in topological order; siblings may even hold the same token."""
    tokens = tuple(draw(st.lists(st.integers(0, 2), max_size=8)))
    parents = tuple(draw(st.integers(-1, node - 1)) for node in range(len(tokens)))
    shares = tuple(draw(probabilities) for _ in tokens)
    return CalibratedDraft(drafter, tokens, shares, parents)


@st.composite
def rounds(draw: st.DrawFn) -> list[CalibratedDraft]:
    """The drafts of up to four drafters."""
    size = draw(st.integers(0, 4))
    return [draw(chains(bit) | wide_drafts(bit)) for bit in range(size)]
