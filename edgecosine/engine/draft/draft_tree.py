"""What a drafter knows beyond a sequence: a tree of guesses that grows where it is most probable.

Bookkeeping only, no tensors. A node is read when the model has evaluated it, so that its own best
continuations are known; the others are leaves that came for free. A node's reach is the
probability, by the drafter's confidences, that the target will say everything down to it.

The nodes lie in plain arrays, which the kernels' `grow` (kernels/growth.h) reads and extends in
place: a whole step there is what `most_probable`, `read` and `add_guesses` are here.
"""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Sequence

from edgecosine.engine.base import DraftResult
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.protocol.wire.tree import ROOT, TokenTree

UNREAD = -1
NO_NODE = -1
CAPACITY = 2048
"""Nodes of a growth; a full one is not explored further."""


class NativeNodes(ctypes.Structure):
    """The nodes as columns; a row is written once, but for its cell and its first child."""

    _fields_ = (
        ("length", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("num_read", ctypes.c_int32),
        ("first_of_root", ctypes.c_int32),
        *((name, ctypes.c_int32 * CAPACITY) for name in ("token", "parent", "depth")),
        ("cell", ctypes.c_int32 * CAPACITY),
        ("first", ctypes.c_int32 * CAPACITY),
        *((name, ctypes.c_double * CAPACITY) for name in ("confidence", "reach", "share")),
        ("share_of_root", ctypes.c_double),
    )


class NativeDraftWork(ctypes.Structure):
    """One work of a step in the kernels."""

    _fields_ = (
        ("nodes", ctypes.POINTER(NativeNodes)),
        ("laid", ctypes.POINTER(ctypes.c_int32)),
        ("noise_seed", ctypes.c_uint64),
        *(
            (name, ctypes.c_int64)
            for name in ("num_laid", "slot", "width", "room", "deepest", "num_chosen")
        ),
        ("inverse_temperature", ctypes.c_float),
        ("is_noisy", ctypes.c_int32),
    )


class DraftTree:
    """The guesses below the last of `length` tokens, which is their root.

    nodes.token[i], .parent[i]   token id of node i; its parent (< i), or ROOT
    nodes.depth[i], .reach[i]    levels below the root, from 1; probability of the path
    nodes.confidence[i]          by the drafter, given that the parent is right
    nodes.cell[i]                where its keys and values lie; UNREAD until the model has read it
    nodes.first[i]               its first and best guess, or NO_NODE
    nodes.share[i]               what the reach of new nodes below it counts for
    """

    __slots__ = ("_children", "_num_known", "_unread", "is_root_read", "nodes")

    def __init__(self, length: int, *, is_root_read: bool = False) -> None:
        self.nodes = NativeNodes(length=length, first_of_root=NO_NODE, share_of_root=1.0)
        self.is_root_read = is_root_read
        self._children: dict[tuple[int, int], int] = {}
        self._unread: list[tuple[float, int]] = []
        """Heap of nodes to read, the highest reach first; entries may be out of date."""
        self._num_known = 0
        """Nodes that the two above know of; the kernels may have added more."""

    def __len__(self) -> int:
        return int(self.nodes.count)

    def __repr__(self) -> str:
        return f"<DraftTree below {self.length} tokens [{len(self)} nodes, {self.num_read} read]>"

    @property
    def length(self) -> int:
        """Tokens of the sequence that it hangs below."""
        return int(self.nodes.length)

    @property
    def num_read(self) -> int:
        """Nodes that the model has read; each has a cell behind the sequence."""
        return int(self.nodes.num_read)

    @property
    def room(self) -> int:
        """Nodes that may still be added."""
        return CAPACITY - len(self)

    @property
    def trunk_depth(self) -> int:
        """How far the best guess after the best guess is known."""
        depth, at = 0, self.nodes.first_of_root
        while at != NO_NODE:
            depth, at = depth + 1, self.nodes.first[at]
        return depth

    def path(self, node: int) -> list[int]:
        """The nodes down to `node`, its own number last."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = self.nodes.parent[node]
        return found[::-1]

    def add_guesses(self, parent: int, guesses: DraftTokens) -> None:
        """The model's best continuations of a node that was read, or of the root; none where the
        model gave no numbers."""
        self._catch_up()
        if parent == ROOT:
            self.is_root_read = True
        for token, confidence in zip(guesses.tokens, guesses.confidences, strict=True):
            is_new = (parent, token) not in self._children
            if is_new and self.room and math.isfinite(confidence):
                self._add(parent, token, confidence)

    def lay(self, tree: TokenTree, shares: Sequence[float] = ()) -> list[int]:
        """Take in a tree that the target verifies: its nodes matter, whoever guessed them.
        What comes after its root and its nodes counts as much as their `shares` say, where given.

        Returns those that the model has not read, parents first; none where there is no room.
        """
        if self.room < len(tree):
            return []
        self._catch_up()
        index: list[int] = []
        for token, parent, confidence in zip(
            tree.tokens, tree.parents, tree.confidences, strict=True
        ):
            above = ROOT if parent == ROOT else index[parent]
            node = self._children.get((above, token))
            index.append(self._add(above, token, confidence) if node is None else node)
        if shares:
            self._weigh(dict(zip((ROOT, *index), shares, strict=True)))
        return [node for node in index if self.nodes.cell[node] == UNREAD]

    def _weigh(self, shares: dict[int, float]) -> None:
        """Let what hangs below nodes of the verified tree, and is not of it, count by shares."""
        nodes, size = self.nodes, len(self)
        nodes.share_of_root = shares[ROOT]
        for node in range(size):
            parent = nodes.parent[node]
            above = nodes.reach[parent] if parent != ROOT else 1.0
            share = 1.0 if node in shares else shares.get(parent, 1.0)
            nodes.reach[node] = nodes.confidence[node] * above * share
            nodes.share[node] = shares.get(node, 1.0)
        self._unread = [
            (-nodes.reach[node], node) for node in range(size) if nodes.cell[node] == UNREAD
        ]
        heapq.heapify(self._unread)

    def most_probable(self, count: int) -> list[int]:
        """The `count` most probable nodes that can be read next."""
        self._catch_up()
        nodes, chosen = self.nodes, list[int]()
        while self._unread and len(chosen) < count:
            _, node = heapq.heappop(self._unread)
            parent = nodes.parent[node]
            is_next = parent == ROOT or nodes.cell[parent] != UNREAD
            if nodes.cell[node] == UNREAD and is_next:
                chosen.append(node)
        return chosen

    def read(self, node: int) -> list[int]:
        """The node gets a cell; returns the cells of the path to it, its own last."""
        nodes = self.nodes
        nodes.cell[node] = nodes.length + nodes.num_read
        nodes.num_read += 1
        return [nodes.cell[at] for at in self.path(node)]

    def proposal(self, most: int) -> DraftResult:
        """The `most` most probable nodes, parents first."""
        nodes, size = self.nodes, len(self)
        ranks = [-reach for reach in nodes.reach[:size]]
        chosen = sorted(range(size), key=ranks.__getitem__)[:most]
        index = {ROOT: ROOT} | {node: place for place, node in enumerate(chosen)}
        return DraftResult(
            tokens=tuple(nodes.token[node] for node in chosen),
            confidences=tuple(nodes.confidence[node] for node in chosen),
            parents=tuple(index[nodes.parent[node]] for node in chosen),
        )

    def follow(self, tokens: Sequence[int]) -> tuple[DraftTree, list[int]]:
        """What is left when the sequence goes on with `tokens`.

        Returns a growth below the tokens that were read, as many as there are from the first, and
        the cells to be copied to the cells from `length` on: the tokens' own, then those of the
        nodes that are left.
        """
        if not tokens:
            return self, []
        self._catch_up()
        at, cells = ROOT, list[int]()
        for token in tokens:
            child = self._children.get((at, token))
            if child is None or self.nodes.cell[child] == UNREAD:
                return DraftTree(self.length + len(cells)), cells
            at = child
            cells.append(self.nodes.cell[child])
        left = DraftTree(self.length + len(cells), is_root_read=True)
        return left, cells + left._graft(self, at)

    def _graft(self, source: DraftTree, root: int) -> list[int]:
        """Take over what hangs below `root`; returns the cells of the nodes that were read."""
        index, cells, size = {root: ROOT}, list[int](), len(source)
        tokens, parents = source.nodes.token[:size], source.nodes.parent[:size]
        shares, held = source.nodes.confidence[:size], source.nodes.cell[:size]
        for node in range(root + 1, size):
            above = index.get(parents[node])
            if above is None:
                continue
            index[node] = self._add(above, tokens[node], shares[node])
            if held[node] != UNREAD:
                cells.append(held[node])
                self.nodes.cell[index[node]] = self.length + self.num_read
                self.nodes.num_read += 1
        return cells

    def _add(self, parent: int, token: int, confidence: float) -> int:
        nodes, node = self.nodes, len(self)
        is_below = parent != ROOT
        nodes.token[node], nodes.parent[node] = token, parent
        nodes.depth[node] = nodes.depth[parent] + 1 if is_below else 1
        nodes.confidence[node] = confidence
        above = nodes.reach[parent] * nodes.share[parent] if is_below else nodes.share_of_root
        nodes.reach[node] = confidence * above
        nodes.share[node] = 1.0
        nodes.cell[node], nodes.first[node] = UNREAD, NO_NODE
        nodes.count += 1
        if is_below and nodes.first[parent] == NO_NODE:
            nodes.first[parent] = node
        elif not is_below and nodes.first_of_root == NO_NODE:
            nodes.first_of_root = node
        self._catch_up()
        return node

    def _catch_up(self) -> None:
        """Know of the nodes that were added."""
        nodes = self.nodes
        while self._num_known < nodes.count:
            node = self._num_known
            self._children[nodes.parent[node], nodes.token[node]] = node
            heapq.heappush(self._unread, (-nodes.reach[node], node))
            self._num_known += 1
