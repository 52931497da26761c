"""Acceptance by sample and match: at each node the target draws its own token. A child with this
token is accepted; without one, it is the bonus token and the walk ends.

Each token of the answer is the target's own draw, so the answer is exact for any tree.
"""

from __future__ import annotations

from collections.abc import Callable

from edgecosine.engine.base import VerificationResult
from edgecosine.protocol.wire.tree import ROOT, TokenTree


def walk(tree: TokenTree, draw: Callable[[int, list[int]], int]) -> VerificationResult:
    """The accepted path of `tree`; `draw(node, accepted tokens) -> token` runs once a level."""
    node, path, accepted = ROOT, list[int](), list[int]()
    while True:
        token = draw(node, accepted)
        child = tree.child(node, token)
        if child is None:
            return VerificationResult(path=tuple(path), bonus=token)
        node = child
        path.append(child)
        accepted.append(token)
