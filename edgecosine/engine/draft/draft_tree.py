"""A drafter's tree of draft tokens, which grows where tokens are most probable. No tensors.

A node is read once the model has evaluated it and its continuations are known; other nodes are
leaves. The path probability of a node is the product of the drafter's confidences from the root:
the probability that the target accepts all tokens down to the node.

The nodes lie in plain arrays. The kernels (kernels/draft_tree.h) extend them in place: one
`edgecosine_draft_step` does what `most_probable`, `read` and `add_children` do here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from edgecosine.engine.base import DraftResult
from edgecosine.engine.cpu.native_structs import NO_NODE, TREE_CAPACITY, UNREAD, NativeNodes
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.protocol.wire.tree import ROOT, TokenTree


class DraftTree:
    """Draft tokens below the last of `length` tokens, which is the root.

    nodes.token[i], .parent[i]   token id of node i; number of its parent (< i), or ROOT
    nodes.depth[i]               levels below the root, from 1
    nodes.path_probability[i]    as explained above, times the shares on the path
    nodes.confidence[i]          the drafter's probability, given that the parent is accepted
    nodes.kv_position[i]         position of its keys and values; UNREAD until the model reads it
    nodes.first[i]               its first and most probable child, or NO_NODE
    nodes.share[i]               factor for the path probability of nodes added below it
    """

    __slots__ = ("_children", "_num_known", "_unread", "is_root_read", "nodes")

    def __init__(self, length: int, *, is_root_read: bool = False) -> None:
        self.nodes = NativeNodes(length=length, first_of_root=NO_NODE, share_of_root=1.0)
        self.is_root_read = is_root_read
        self._children: dict[tuple[int, int], int] = {}
        self._unread: list[tuple[float, int]] = []
        """Heap of (-path probability, node); may contain nodes that have been read."""
        self._num_known = 0
        """Nodes in the two indexes above; the kernels may have added more."""

    def __len__(self) -> int:
        return int(self.nodes.count)

    def __repr__(self) -> str:
        return f"<DraftTree below {self.length} tokens [{len(self)} nodes, {self.num_read} read]>"

    @property
    def length(self) -> int:
        """Tokens of the sequence above the tree."""
        return int(self.nodes.length)

    @property
    def num_read(self) -> int:
        """Nodes that the model has read; each has a KV position behind the sequence."""
        return int(self.nodes.num_read)

    @property
    def room(self) -> int:
        """Nodes that may still be added."""
        return TREE_CAPACITY - len(self)

    @property
    def trunk_depth(self) -> int:
        """Length of the path of first children from the root."""
        depth, at = 0, self.nodes.first_of_root
        while at != NO_NODE:
            depth, at = depth + 1, self.nodes.first[at]
        return depth

    def path(self, node: int) -> list[int]:
        """Nodes from the root to `node`, which is the last."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = self.nodes.parent[node]
        return found[::-1]

    def add_children(self, parent: int, draft_tokens: DraftTokens) -> None:
        """Add the most probable continuations of a node that was read, or of the root.

        Confidences that are NaN or infinite are skipped."""
        self._update_indexes()
        if parent == ROOT:
            self.is_root_read = True
        for token, confidence in zip(draft_tokens.tokens, draft_tokens.confidences, strict=True):
            is_new = (parent, token) not in self._children
            if is_new and self.room and math.isfinite(confidence):
                self._add(parent, token, confidence)

    def seed_with(self, tree: TokenTree, shares: Sequence[float] = ()) -> list[int]:
        """Add the tree that the target is verifying, whichever drafters its tokens come from.

        `shares` weight what follows the root and each of its nodes; without them all weigh 1.
        Returns the nodes that the model has not read, parents first; none where there is no room.
        """
        if self.room < len(tree):
            return []
        self._update_indexes()
        index: list[int] = []
        for token, parent, confidence in zip(
            tree.tokens, tree.parents, tree.confidences, strict=True
        ):
            above = ROOT if parent == ROOT else index[parent]
            node = self._children.get((above, token))
            index.append(self._add(above, token, confidence) if node is None else node)
        if shares:
            self._weigh(dict(zip((ROOT, *index), shares, strict=True)))
        return [node for node in index if self.nodes.kv_position[node] == UNREAD]

    def _weigh(self, shares: dict[int, float]) -> None:
        """Weight nodes that hang below the verified tree by the shares of its nodes."""
        nodes, size = self.nodes, len(self)
        nodes.share_of_root = shares[ROOT]
        for node in range(size):
            parent = nodes.parent[node]
            above = nodes.path_probability[parent] if parent != ROOT else 1.0
            share = 1.0 if node in shares else shares.get(parent, 1.0)
            nodes.path_probability[node] = nodes.confidence[node] * above * share
            nodes.share[node] = shares.get(node, 1.0)
        self._unread = [
            (-nodes.path_probability[node], node)
            for node in range(size)
            if nodes.kv_position[node] == UNREAD
        ]
        heapq.heapify(self._unread)

    def most_probable(self, count: int) -> list[int]:
        """The `count` most probable nodes whose parents have been read."""
        self._update_indexes()
        nodes, chosen = self.nodes, list[int]()
        while self._unread and len(chosen) < count:
            _, node = heapq.heappop(self._unread)
            parent = nodes.parent[node]
            is_next = parent == ROOT or nodes.kv_position[parent] != UNREAD
            if nodes.kv_position[node] == UNREAD and is_next:
                chosen.append(node)
        return chosen

    def read(self, node: int) -> list[int]:
        """Assign a KV position to the node; returns those of the path to it, its own last."""
        nodes = self.nodes
        nodes.kv_position[node] = nodes.length + nodes.num_read
        nodes.num_read += 1
        return [nodes.kv_position[at] for at in self.path(node)]

    def proposal(self, most: int) -> DraftResult:
        """A draft of the `most` most probable nodes, parents first."""
        nodes, size = self.nodes, len(self)
        ranks = [-probability for probability in nodes.path_probability[:size]]
        chosen = sorted(range(size), key=ranks.__getitem__)[:most]
        index = {ROOT: ROOT} | {node: place for place, node in enumerate(chosen)}
        return DraftResult(
            tokens=tuple(nodes.token[node] for node in chosen),
            confidences=tuple(nodes.confidence[node] for node in chosen),
            parents=tuple(index[nodes.parent[node]] for node in chosen),
        )

    def follow(self, tokens: Sequence[int]) -> tuple[DraftTree, list[int]]:
        """The rest of the tree once `tokens` follow the sequence.

        Returns a tree below the longest prefix of `tokens` whose nodes were read, and the KV
        positions to copy to those from `length` on: those of the prefix, then of the nodes kept.
        """
        if not tokens:
            return self, []
        self._update_indexes()
        at, kv_positions = ROOT, list[int]()
        for token in tokens:
            child = self._children.get((at, token))
            if child is None or self.nodes.kv_position[child] == UNREAD:
                return DraftTree(self.length + len(kv_positions)), kv_positions
            at = child
            kv_positions.append(self.nodes.kv_position[child])
        left = DraftTree(self.length + len(kv_positions), is_root_read=True)
        return left, kv_positions + left._graft(self, at)

    def _graft(self, source: DraftTree, root: int) -> list[int]:
        """Copy what hangs below `root`; returns the KV positions of the nodes that were read."""
        index, kv_positions, size = {root: ROOT}, list[int](), len(source)
        tokens, parents = source.nodes.token[:size], source.nodes.parent[:size]
        shares, old = source.nodes.confidence[:size], source.nodes.kv_position[:size]
        for node in range(root + 1, size):
            above = index.get(parents[node])
            if above is None:
                continue
            index[node] = self._add(above, tokens[node], shares[node])
            if old[node] != UNREAD:
                kv_positions.append(old[node])
                self.nodes.kv_position[index[node]] = self.length + self.num_read
                self.nodes.num_read += 1
        return kv_positions

    def _add(self, parent: int, token: int, confidence: float) -> int:
        nodes, node = self.nodes, len(self)
        is_below = parent != ROOT
        nodes.token[node], nodes.parent[node] = token, parent
        nodes.depth[node] = nodes.depth[parent] + 1 if is_below else 1
        nodes.confidence[node] = confidence
        above = nodes.share_of_root
        if is_below:
            above = nodes.path_probability[parent] * nodes.share[parent]
        nodes.path_probability[node] = confidence * above
        nodes.share[node] = 1.0
        nodes.kv_position[node], nodes.first[node] = UNREAD, NO_NODE
        nodes.count += 1
        if is_below and nodes.first[parent] == NO_NODE:
            nodes.first[parent] = node
        elif not is_below and nodes.first_of_root == NO_NODE:
            nodes.first_of_root = node
        self._update_indexes()
        return node

    def _update_indexes(self) -> None:
        """Add the new nodes to `_children` and `_unread`."""
        nodes = self.nodes
        while self._num_known < nodes.count:
            node = self._num_known
            self._children[nodes.parent[node], nodes.token[node]] = node
            heapq.heappush(self._unread, (-nodes.path_probability[node], node))
            self._num_known += 1
