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
    calibrated, one per token, given that the parent is right; `parents` is empty for a chain."""

    drafter: int
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    parents: tuple[int, ...] = ()

    def parent(self, node: int) -> int:
        """Index of the node's parent, or ROOT."""
        return self.parents[node] if self.parents else node - 1


@dataclass(slots=True)
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


def union(drafts: Sequence[Draft], budget: int) -> TokenTree:
    """The tree of all drafts, its `budget` most probable nodes.

    A child is never more probable than its parent along a path, so the cut keeps whole paths.
    """
    root = _Node(token=-1, parent=None, doubt=0.0)
    for draft in sorted(drafts, key=lambda d: d.drafter):
        _merge(root, draft)
    return _cut(root, budget)


def reaches(tree: TokenTree) -> list[float]:
    """Probability that each node of a tree is accepted, by node."""
    found: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        found.append(confidence if parent == ROOT else found[parent] * confidence)
    return found


def _merge(root: _Node, draft: Draft) -> None:
    nodes: list[_Node] = []
    for index, (token, probability) in enumerate(
        zip(draft.tokens, draft.probabilities, strict=True)
    ):
        above = draft.parent(index)
        parent = root if above == ROOT else nodes[above]
        node = parent.children.setdefault(token, _Node(token, parent))
        if not node.proposers >> draft.drafter & 1:
            node.doubt *= 1.0 - min(probability, 0.999)
            node.proposers |= 1 << draft.drafter
        nodes.append(node)


def _cut(root: _Node, budget: int) -> TokenTree:
    ranked: list[tuple[float, int, int, _Node]] = []
    open_nodes = [(root, 1.0, 0)]
    while open_nodes:
        node, path_probability, depth = open_nodes.pop()
        for child in node.children.values():
            reach = path_probability * child.probability
            ranked.append((-reach, depth + 1, child.token, child))
            open_nodes.append((child, reach, depth + 1))
    ranked.sort(key=lambda entry: (*entry[:3], _tokens_to(entry[3])))
    chosen = sorted(ranked[:budget], key=lambda entry: entry[1])
    index: dict[int, int] = {id(root): ROOT}
    for position, (_, _, _, node) in enumerate(chosen):
        index[id(node)] = position
    nodes = [node for *_, node in chosen]
    return TokenTree(
        tokens=tuple(node.token for node in nodes),
        parents=tuple(index[id(node.parent)] for node in nodes),
        confidences=tuple(node.probability for node in nodes),
        proposers=tuple(node.proposers for node in nodes),
    )


def _tokens_to(node: _Node) -> tuple[int, ...]:
    tokens: list[int] = []
    above: _Node | None = node
    while above is not None:
        tokens.append(above.token)
        above = above.parent
    return tuple(reversed(tokens))
