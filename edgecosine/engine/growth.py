"""What a drafter knows beyond a sequence: a tree of guesses that grows where it is most probable.

Bookkeeping only, no tensors. A node is read when the model has evaluated it, so that its own best
continuations are known; the others are leaves that came for free. A node's reach is the
probability, by the drafter's confidences, that the target will say everything down to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.engine.base import Proposal
from edgecosine.engine.guessing import Guesses
from edgecosine.protocol.tree import ROOT, TokenTree

UNREAD = -1


@dataclass(slots=True)
class _Node:
    token: int
    parent: int
    depth: int
    confidence: float
    reach: float
    cell: int = UNREAD
    """Where its keys and values lie; UNREAD until the model has read it."""


@dataclass(slots=True)
class Growth:
    """The guesses below the last of `length` tokens, which is their root."""

    length: int
    is_root_read: bool = False
    num_read: int = 0
    nodes: list[_Node] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)
    _first: dict[int, int] = field(default_factory=dict)
    """The best guess after each node that has one."""
    _unread: list[tuple[float, int]] = field(default_factory=list)
    """Heap of nodes to read, the highest reach first; entries may be out of date."""
    _shares: dict[int, float] = field(default_factory=dict)
    """What the reach of anything new counts for after nodes of the tree that is verified."""

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def trunk_depth(self) -> int:
        """How far the best guess after the best guess is known."""
        depth, at = 0, ROOT
        while (below := self._first.get(at)) is not None:
            depth, at = depth + 1, below
        return depth

    def add_guesses(self, parent: int, guesses: Guesses) -> None:
        """The model's best continuations of a node that was read, or of the root."""
        if parent == ROOT:
            self.is_root_read = True
        for token, confidence in zip(guesses.tokens, guesses.confidences, strict=True):
            if (parent, token) not in self._children:
                self._add(parent, token, confidence)

    def lay(self, tree: TokenTree, shares: Sequence[float] = ()) -> list[int]:
        """Take in a tree that the target verifies: its nodes matter, whoever guessed them.

        What comes after its root and its nodes counts as much as their `shares` say, where given.

        Returns those that the model has not read, parents first.
        """
        index: list[int] = []
        self._shares = {}
        for token, parent, confidence in zip(
            tree.tokens, tree.parents, tree.confidences, strict=True
        ):
            above = ROOT if parent == ROOT else index[parent]
            node = self._children.get((above, token))
            index.append(self._add(above, token, confidence) if node is None else node)
        if shares:
            self._weigh(dict(zip((ROOT, *index), shares, strict=True)))
        return [node for node in index if self.nodes[node].cell == UNREAD]

    def _weigh(self, shares: dict[int, float]) -> None:
        for node, entry in enumerate(self.nodes):
            above = self.nodes[entry.parent].reach if entry.parent != ROOT else 1.0
            share = 1.0 if node in shares else shares.get(entry.parent, 1.0)
            entry.reach = entry.confidence * above * share
        entries = enumerate(self.nodes)
        self._unread = [(-entry.reach, node) for node, entry in entries if entry.cell == UNREAD]
        heapq.heapify(self._unread)
        self._shares = shares

    def most_probable(self, count: int) -> list[int]:
        """The `count` most probable nodes that can be read next."""
        chosen: list[int] = []
        while self._unread and len(chosen) < count:
            _, node = heapq.heappop(self._unread)
            entry = self.nodes[node]
            is_next = entry.parent == ROOT or self.nodes[entry.parent].cell != UNREAD
            if entry.cell == UNREAD and is_next:
                chosen.append(node)
        return chosen

    def read(self, node: int) -> list[int]:
        """The node gets a cell; returns the cells of the path to it, its own last."""
        entry = self.nodes[node]
        entry.cell = self.length + self.num_read
        self.num_read += 1
        path: list[int] = []
        at = node
        while at != ROOT:
            path.append(self.nodes[at].cell)
            at = self.nodes[at].parent
        return path[::-1]

    def proposal(self, most: int) -> Proposal:
        """The `most` most probable nodes, parents first."""
        ranked = sorted(range(len(self.nodes)), key=lambda n: (-self.nodes[n].reach, n))[:most]
        index = {ROOT: ROOT} | {node: place for place, node in enumerate(ranked)}
        chosen = [self.nodes[node] for node in ranked]
        return Proposal(
            tokens=tuple(entry.token for entry in chosen),
            confidences=tuple(entry.confidence for entry in chosen),
            parents=tuple(index[entry.parent] for entry in chosen),
        )

    def follow(self, tokens: Sequence[int]) -> tuple[Growth, list[int]]:
        """What is left when the sequence goes on with `tokens`.

        Returns a growth below the tokens that were read, as many as there are from the first, and
        the cells to be copied to the cells from `length` on: the tokens' own, then those of the
        nodes that are left.
        """
        if not tokens:
            return self, []
        at, cells = ROOT, list[int]()
        for token in tokens:
            child = self._children.get((at, token))
            if child is None or self.nodes[child].cell == UNREAD:
                return Growth(self.length + len(cells)), cells
            at = child
            cells.append(self.nodes[child].cell)
        left = Growth(self.length + len(cells), is_root_read=True)
        return left, cells + left._graft(self, at)

    def _graft(self, source: Growth, root: int) -> list[int]:
        """Take over what hangs below `root`; returns the cells of the nodes that were read."""
        index, cells = {root: ROOT}, list[int]()
        for node, entry in enumerate(source.nodes):
            if node == root or entry.parent not in index:
                continue
            index[node] = self._add(index[entry.parent], entry.token, entry.confidence)
            if entry.cell != UNREAD:
                cells.append(entry.cell)
                self.read(index[node])
        return cells

    def _add(self, parent: int, token: int, confidence: float) -> int:
        above = self.nodes[parent] if parent != ROOT else None
        reach = confidence * (above.reach if above else 1.0) * self._shares.get(parent, 1.0)
        node = len(self.nodes)
        depth = above.depth + 1 if above else 1
        self.nodes.append(_Node(token, parent, depth, confidence, reach))
        self._children[(parent, token)] = node
        self._first.setdefault(parent, node)
        heapq.heappush(self._unread, (-reach, node))
        return node
