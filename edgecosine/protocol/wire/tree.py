"""The token tree: drafts merged on shared prefixes, with the last committed token as its root.

Nodes are in topological order: a parent comes before its children, and -1 is the root.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property

import msgspec

ROOT = -1


class TokenTree(msgspec.Struct, frozen=True, dict=True):
    """Draft tokens and their parents; `len(tree)` nodes, the root not counted.

    tokens[i]       token id of node i
    parents[i]      index of its parent (< i), or -1 for a child of the root
    confidences[i]  probability that node i is right given that its parent is, 0..1
    proposers[i]    bit set of the drafters (by index in the round) whose drafts hold node i

    Siblings hold different tokens, so that a walk by token is unambiguous. Nothing is checked here:
    `checked_tree` is for nodes from outside.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    proposers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of each node from the root, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    def children(self, node: int) -> list[int]:
        """The children of `node` (-1: the root)."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def only(self, nodes: Sequence[int]) -> TokenTree:
        """The tree of some nodes in rising order, with the parent of each."""
        place_of = {node: place for place, node in enumerate(nodes)}
        return TokenTree(
            tokens=tuple([self.tokens[node] for node in nodes]),
            parents=tuple([place_of.get(self.parents[node], ROOT) for node in nodes]),
            confidences=tuple([self.confidences[node] for node in nodes]),
            proposers=tuple([self.proposers[node] for node in nodes]),
        )

    def with_trunk(self, tokens: Sequence[int]) -> TokenTree:
        """The tree with a path of `tokens` from the root; nodes of the path that it lacks have no
        proposer and the confidence 1."""
        new_tokens, new_parents, at = list[int](), list[int](), ROOT
        for token in tokens:
            child = None if new_tokens else self.child(at, token)
            if child is None:
                child = len(self) + len(new_tokens)
                new_tokens.append(token)
                new_parents.append(at)
            at = child
        size = len(new_tokens)
        return TokenTree(
            (*self.tokens, *new_tokens),
            (*self.parents, *new_parents),
            (*self.confidences, *[1.0] * size),
            (*self.proposers, *[0] * size),
        )

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` (-1: the root) that holds `token`, if there is one."""
        child = node
        try:
            while True:
                child = self.tokens.index(token, child + 1)
                if self.parents[child] == node:
                    return child
        except ValueError:
            return None

    def path(self, node: int) -> tuple[int, ...]:
        """Nodes from a child of the root down to `node`."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))


EMPTY_TREE = TokenTree()


def checked_tree(
    tokens: tuple[int, ...],
    parents: tuple[int, ...],
    confidences: tuple[float, ...],
    proposers: tuple[int, ...],
) -> TokenTree:
    """The tree of these nodes.

    Raises ValueError where they are none.
    """
    size = len(tokens)
    if not len(parents) == len(confidences) == len(proposers) == size:
        raise ValueError("a token tree needs one parent, confidence and proposer set per token")
    is_ordered = all(map(operator.lt, parents, range(size)))
    if not is_ordered or min(parents, default=ROOT) < ROOT:
        raise ValueError("a token tree lists parents before their children")
    if len(set(zip(parents, tokens, strict=True))) != size:
        raise ValueError("siblings of a token tree hold different tokens")
    return TokenTree(tokens, parents, confidences, proposers)


def chain(
    tokens: tuple[int, ...],
    confidences: tuple[float, ...] | None = None,
    proposers: int = 1,
) -> TokenTree:
    """The tree of a single sequence of tokens."""
    size = len(tokens)
    return TokenTree(
        tokens=tokens,
        parents=tuple(range(ROOT, size - 1)),
        confidences=confidences if confidences is not None else (1.0,) * size,
        proposers=(proposers,) * size,
    )
