"""Drafts into one token tree. Pure: the result depends on the drafts alone, not on their order.

The default is the union of all drafts on shared prefixes, cut to the node budget by path
probability. Agreement raises a node: drafters that say the same token are combined as independent
witnesses, 1 - prod(1 - p_i).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.protocol.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class Draft:
    """One drafter's proposal. `drafter` is its bit index in the round; `probabilities` are
    calibrated, one per token, given that the parent is right; `parents` is empty for a chain.

    Its first `trunk` tokens are another draft's, which it goes on from: it is no witness for them.
    """

    drafter: int
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    parents: tuple[int, ...] = ()
    trunk: int = 0

    def parent(self, node: int) -> int:
        """Index of the node's parent, or ROOT."""
        return self.parents[node] if self.parents else node - 1


@dataclass(slots=True, eq=False)
class _Node:
    token: int
    parent: _Node | None
    doubt: float = 1.0
    """prod(1 - p_i) over the drafters that propose it here."""
    proposers: int = 0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def probability(self) -> float:
        return 1.0 - self.doubt


class Union:
    """All drafts on shared prefixes. `reaches` are the probabilities that its nodes are accepted,
    in falling order; a child is never more probable than its parent, so a cut keeps whole paths.
    """

    def __init__(self, drafts: Sequence[Draft]) -> None:
        root = _Node(token=-1, parent=None, doubt=0.0)
        for draft in sorted(drafts, key=lambda d: d.drafter):
            _merge(root, draft)
        ranked = _ranked(root)
        self._nodes = [node for _, _, node in ranked]
        self.reaches = [-negative for negative, _, _ in ranked]
        self.open_reach = sum(-negative for negative, _, node in ranked if not node.children)
        """Probability that the target's path ends at a leaf, where nobody has said what follows."""

    def tree(self, budget: int) -> TokenTree:
        """Its `budget` most probable nodes."""
        chosen = self._nodes[: max(0, budget)]
        index = {id(node): place for place, node in enumerate(chosen)}
        return TokenTree(
            tokens=tuple(node.token for node in chosen),
            parents=tuple(index.get(id(node.parent), ROOT) for node in chosen),
            confidences=tuple(node.probability for node in chosen),
            proposers=tuple(node.proposers for node in chosen),
        )


def union(drafts: Sequence[Draft], budget: int) -> TokenTree:
    """The tree of all drafts, its `budget` most probable nodes."""
    return Union(drafts).tree(budget)


def reaches(tree: TokenTree) -> list[float]:
    """Probability that each node of a tree is accepted, by node."""
    found: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        found.append(confidence if parent == ROOT else found[parent] * confidence)
    return found


def _merge(root: _Node, draft: Draft) -> None:
    nodes: list[_Node] = []
    bit = 1 << draft.drafter
    for index, (token, probability) in enumerate(
        zip(draft.tokens, draft.probabilities, strict=True)
    ):
        above = draft.parent(index)
        parent = root if above == ROOT else nodes[above]
        node = parent.children.get(token)
        if node is None:
            node = parent.children[token] = _Node(token, parent)
        if index >= draft.trunk and not node.proposers & bit:
            node.doubt *= 1.0 - min(probability, 0.999)
            node.proposers |= bit
        nodes.append(node)


def _ranked(root: _Node) -> list[tuple[float, int, _Node]]:
    """All nodes as (-reach, depth, node), the most probable first and parents before children."""
    found: list[tuple[float, int, _Node]] = []
    level, depth = [(root, 1.0)], 0
    while level:
        depth += 1
        below = [
            (child, reach * child.probability)
            for node, reach in level
            for child in node.children.values()
        ]
        found += [(-reach, depth, child) for child, reach in below]
        level = below
    found.sort(key=lambda entry: entry[:2])
    return found
