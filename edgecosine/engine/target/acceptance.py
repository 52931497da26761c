"""Acceptance by sample and match (a decision in ARCHITECTURE.md): at every node the target draws
its own token; if a child holds it, step down, else it is the bonus token.

The answer is the target's own draw at each position, so it is exact for any tree whatsoever.
"""

from __future__ import annotations

from collections.abc import Callable

from edgecosine.engine.base import VerificationResult
from edgecosine.protocol.wire.tree import ROOT, TokenTree


def walk(tree: TokenTree, draw: Callable[[int, list[int]], int]) -> VerificationResult:
    """Walk down `tree` by `draw(node, accepted tokens) -> token`, called once per level."""
    node, path, accepted = ROOT, list[int](), list[int]()
    while True:
        token = draw(node, accepted)
        child = tree.child(node, token)
        if child is None:
            return VerificationResult(path=tuple(path), bonus=token)
        node = child
        path.append(child)
        accepted.append(token)
