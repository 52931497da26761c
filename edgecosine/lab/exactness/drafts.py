"""Random drafts of every quality, made from the known answer of plain decoding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree

MOST_NODES = 32

Mood = Callable[[random.Random, Sequence[int], int], TokenTree]
"""(random generator, the next tokens of plain decoding, vocabulary) -> tree."""


class _Growing:
    """A tree that grows node by node; an existing child is not added again."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, parent: int, token: int) -> int:
        """The child of `parent` that holds `token`."""
        return self._nodes.setdefault((parent, token), len(self._nodes))

    def tree(self) -> TokenTree:
        size = len(self._nodes)
        parents, tokens = zip(*self._nodes, strict=True) if size else ((), ())
        return TokenTree(tuple(tokens), tuple(parents), (1.0,) * size, (1,) * size)


def no_draft(_: random.Random, __: Sequence[int], ___: int) -> TokenTree:
    """No tree: a plain row between other sessions' trees."""
    return EMPTY_TREE


def good(rng: random.Random, coming: Sequence[int], vocabulary: int) -> TokenTree:
    """A chain that is mostly right, with errors and wrong siblings before and after its nodes."""
    growing, parent, is_right = _Growing(), ROOT, True
    errors, siblings = rng.choice((0.0, 0.1, 0.3)), rng.choice((0.0, 0.3, 1.0))
    for token in coming[: rng.randint(1, 10)]:
        for _ in range(rng.random() < siblings):
            growing.add(parent, rng.randrange(vocabulary))
        is_right &= rng.random() >= errors
        node = growing.add(parent, token if is_right else rng.randrange(vocabulary))
        for _ in range(rng.random() < siblings):
            growing.add(parent, rng.randrange(vocabulary))
        parent = node
    return growing.tree()


def bad(rng: random.Random, coming: Sequence[int], vocabulary: int) -> TokenTree:
    """A tree of any shape with some right nodes."""
    growing, depths = _Growing(), {ROOT: 0}
    for _ in range(rng.randint(1, MOST_NODES)):
        parent = rng.choice(list(depths))
        depth = depths[parent]
        is_right = depth < len(coming) and rng.random() < 0.2
        node = growing.add(parent, coming[depth] if is_right else rng.randrange(vocabulary))
        depths[node] = depth + 1
    return growing.tree()


def deep(rng: random.Random, coming: Sequence[int], vocabulary: int) -> TokenTree:
    """A long chain that starts right and then repeats one token."""
    growing, parent = _Growing(), ROOT
    right, repeated = rng.randrange(MOST_NODES), rng.randrange(vocabulary)
    for depth in range(MOST_NODES):
        is_right = depth < min(right, len(coming))
        parent = growing.add(parent, coming[depth] if is_right else repeated)
    return growing.tree()


def wide(rng: random.Random, coming: Sequence[int], vocabulary: int) -> TokenTree:
    """A fan of first tokens with the right one last, and the same continuation below each."""
    growing = _Growing()
    tails = [token % vocabulary for token in coming[1:3]]
    wrong = [rng.randrange(vocabulary) for _ in range(MOST_NODES // 3 - 1)]
    for first in (*wrong, *coming[:1]):
        parent = growing.add(ROOT, first)
        for token in tails:
            parent = growing.add(parent, token)
    return growing.tree()


def interleaved(rng: random.Random, coming: Sequence[int], vocabulary: int) -> TokenTree:
    """The right path among wrong ones that grow in turn, so that its KV positions are far apart."""
    growing = _Growing()
    ends = [ROOT] * rng.randint(2, 5)
    right = rng.randrange(len(ends))
    for token in coming[: MOST_NODES // len(ends)]:
        for path, end in enumerate(ends):
            ends[path] = growing.add(end, token if path == right else rng.randrange(vocabulary))
    return growing.tree()


MOODS: tuple[Mood, ...] = (good, good, good, interleaved, bad, deep, wide, no_draft)
