"""Builds the rows of a flat forward pass: prefill tokens and token trees of many sessions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgecosine.engine.attention import BatchRows
from edgecosine.protocol.wire.tree import ROOT, TokenTree


class RowBuilder:
    """Collects rows session by session and converts them to tensors once."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._slot: list[int] = []
        self._kv_position: list[int] = []
        self._length: list[int] = []
        self._paths: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add_sequence(self, slot: int, start: int, tokens: Sequence[int], shift: int = 0) -> None:
        """Add tokens at the KV positions start, start + 1, ... of a slot; their positions in the
        sequence are those plus `shift`."""
        for kv_position, token in enumerate(tokens, start):
            self._add(slot, token, kv_position + shift, kv_position, kv_position + 1, [])

    def add_tree(self, slot: int, length: int, tree: TokenTree, shift: int = 0) -> None:
        """Add the nodes of a tree whose root is the last of `length` tokens.

        Node i takes the KV position length + i. It sees the sequence, its ancestors and itself.
        """
        if tree.is_chain:
            self.add_sequence(slot, length, tree.tokens, shift)
            return
        paths: list[list[int]] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            above = [] if parent == ROOT else paths[parent]
            paths.append([*above, length + node])
            position = length + tree.depths[node] - 1 + shift
            self._add(slot, token, position, length + node, length, paths[node])

    def add_node(
        self, slot: int, length: int, token: int, path: Sequence[int], shift: int = 0
    ) -> None:
        """Add a node below `length` tokens; `path` has the KV positions down to its own."""
        self._add(slot, token, length + len(path) - 1 + shift, path[-1], length, list(path))

    def _add(
        self,
        slot: int,
        token: int,
        position: int,
        kv_position: int,
        length: int,
        path: list[int],
    ) -> None:
        self._tokens.append(token)
        self._positions.append(position)
        self._slot.append(slot)
        self._kv_position.append(kv_position)
        self._length.append(length)
        self._paths.append(path)

    def build(self) -> BatchRows:
        """The rows as tensors."""
        longest = max(1, max(map(len, self._paths), default=1))
        padded = [path + [0] * (longest - len(path)) for path in self._paths]
        lengths = [len(path) for path in self._paths]
        # One tensor for several columns: allocation costs more than the copy.
        wide = torch.tensor([self._tokens, self._positions])
        narrow = torch.tensor(
            [self._slot, self._kv_position, self._length, lengths], dtype=torch.int32
        )
        return BatchRows(
            tokens=wide[0],
            positions=wide[1],
            slot=narrow[0],
            kv_position=narrow[1],
            length=narrow[2],
            path=torch.tensor(padded, dtype=torch.int32),
            path_length=narrow[3],
        )


def branch_among_siblings(branch: Sequence[int]) -> TokenTree:
    """A tree for tests of a model: token i of `branch` is node 2 i + 1, after a wrong sibling."""
    nodes, parents, right = list[int](), list[int](), ROOT
    for token in branch:
        nodes += [abs(token - 1), token]
        parents += [right, right]
        right = len(nodes) - 1
    size = len(nodes)
    return TokenTree(tuple(nodes), tuple(parents), (1.0,) * size, (1,) * size)
