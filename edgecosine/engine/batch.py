"""Builds the rows of a flat forward pass: prefill tokens and token trees of many sessions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgecosine.engine.attention import BatchRows
from edgecosine.protocol.wire.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The columns of `BatchRows` as arrays; `path` has `longest` entries for each row."""

    tokens: array[int]
    positions: array[int]
    slot: array[int]
    kv_position: array[int]
    length: array[int]
    path: array[int]
    path_length: array[int]
    longest: int


class RowBuilder:
    """Collects rows session by session and converts them once."""

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
        longest, path = self._padded_paths()
        # One tensor for several columns: allocation costs more than the copy.
        wide = torch.tensor([self._tokens, self._positions])
        narrow = torch.tensor(
            [self._slot, self._kv_position, self._length, self._path_lengths()], dtype=torch.int32
        )
        return BatchRows(
            tokens=wide[0],
            positions=wide[1],
            slot=narrow[0],
            kv_position=narrow[1],
            length=narrow[2],
            path=torch.tensor(path, dtype=torch.int32).view(-1, longest),
            path_length=narrow[3],
        )

    def columns(self) -> RowColumns:
        """The rows as plain arrays. Python and torch are not in the processor's cache after a pass,
        where tensors take ten times as long to make."""
        longest, path = self._padded_paths()
        return RowColumns(
            tokens=array("q", self._tokens),
            positions=array("q", self._positions),
            slot=array("i", self._slot),
            kv_position=array("i", self._kv_position),
            length=array("i", self._length),
            path=array("i", path),
            path_length=array("i", self._path_lengths()),
            longest=longest,
        )

    def _path_lengths(self) -> list[int]:
        return [len(path) for path in self._paths]

    def _padded_paths(self) -> tuple[int, list[int]]:
        """The length of the longest path, and all of them, padded to it."""
        longest = max(1, max(map(len, self._paths), default=1))
        zeros = [0] * longest
        return longest, [at for path in self._paths for at in (path + zeros)[:longest]]


def branch_among_siblings(branch: Sequence[int]) -> TokenTree:
    """A tree for tests of a model: token i of `branch` is node 2 i + 1, after a wrong sibling."""
    nodes, parents, right = list[int](), list[int](), ROOT
    for token in branch:
        nodes += [abs(token - 1), token]
        parents += [right, right]
        right = len(nodes) - 1
    size = len(nodes)
    return TokenTree(tuple(nodes), tuple(parents), (1.0,) * size, (1,) * size)
