"""Drafts into one token tree. Pure: the result depends on the drafts alone, not on their order.

The default is the union of all drafts on shared prefixes, cut to the node budget by path
probability. Agreement raises a node: drafters that say the same token are combined as independent
witnesses, 1 - prod(1 - p_i).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine.protocol.wire.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class CalibratedDraft:
    """One drafter's proposal. `drafter` is its bit index in the round; `probabilities` are
    calibrated, one per token, given that the parent is right; `parents` is empty for a chain.

    Its first `trunk` tokens are another draft's, which it goes on from: it is no witness for them.
    """

    drafter: int
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    parents: tuple[int, ...] = ()
    trunk: int = 0


class DraftUnion:
    """All drafts on shared prefixes. `reaches` are the probabilities that its nodes are accepted,
    in falling order; a child is never more probable than its parent, so a cut keeps whole paths.
    """

    def __init__(self, drafts: Sequence[CalibratedDraft]) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._doubts: list[float] = []
        """prod(1 - p_i) over the drafters that propose a node."""
        self._proposers: list[int] = []
        self._index: dict[tuple[int, int], int] = {}
        for draft in sorted(drafts, key=lambda d: d.drafter):
            self._merge(draft)
        size = len(self._tokens)
        reaches, depths = [1.0] * (size + 1), [0] * (size + 1)  # the root's place is the last: ROOT
        for node, (parent, doubt) in enumerate(zip(self._parents, self._doubts, strict=True)):
            reaches[node] = reaches[parent] * (1.0 - doubt)
            depths[node] = depths[parent] + 1
        ranked = sorted(zip(map(operator.neg, reaches), depths, range(size), strict=False))
        self._ranked = [node for _, _, node in ranked]
        self.reaches = [reaches[node] for node in self._ranked]
        inner = set(self._parents)
        self.open_reach = sum(reaches[node] for node in self._ranked if node not in inner)
        """Probability that the target's path ends at a leaf, where nobody has said what follows."""

    def _merge(self, draft: CalibratedDraft) -> None:
        """Parents come before their children here, as they do in each draft."""
        bit, trunk, places = 1 << draft.drafter, draft.trunk, list[int]()
        index, proposers, doubts = self._index, self._proposers, self._doubts
        parents = draft.parents or range(ROOT, len(draft.tokens) - 1)
        for number, (token, probability, above) in enumerate(
            zip(draft.tokens, draft.probabilities, parents, strict=True)
        ):
            parent = ROOT if above == ROOT else places[above]
            node = index.get((parent, token))
            if node is None:
                node = index[parent, token] = len(doubts)
                self._tokens.append(token)
                self._parents.append(parent)
                doubts.append(1.0)
                proposers.append(0)
            if number >= trunk and not proposers[node] & bit:
                doubts[node] *= 1.0 - min(probability, 0.999)
                proposers[node] |= bit
            places.append(node)

    def tree(self, budget: int) -> TokenTree:
        """Its `budget` most probable nodes."""
        chosen = self._ranked[: max(0, budget)]
        place_of = {node: place for place, node in enumerate(chosen)}
        return TokenTree(
            tokens=tuple([self._tokens[node] for node in chosen]),
            parents=tuple([place_of.get(self._parents[node], ROOT) for node in chosen]),
            confidences=tuple([1.0 - self._doubts[node] for node in chosen]),
            proposers=tuple([self._proposers[node] for node in chosen]),
        )


def union(drafts: Sequence[CalibratedDraft], budget: int) -> TokenTree:
    """The tree of all drafts, its `budget` most probable nodes."""
    return DraftUnion(drafts).tree(budget)


def reaches(tree: TokenTree) -> list[float]:
    """Probability that each node of a tree is accepted, by node."""
    found: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        found.append(confidence if parent == ROOT else found[parent] * confidence)
    return found
