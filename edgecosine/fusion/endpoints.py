"""Shares the endpoints of an acceptance out among drafters that draft ahead (the outcome fan-out of
Speculative Speculative Decoding).

An endpoint is the node at which acceptance may end, the root included; the target's own token
follows it. Drafters that all begin with the most probable endpoints draft much the same tokens.
With different shares their drafts together cover more endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from edgecosine.protocol.wire.tree import TokenTree

OWN, OTHERS = 255, 64
"""Weights of a drafter's own endpoints and of the others. The others keep a weight, since the
drafter that owns them may be late, or wrong about the token that follows."""


def endpoint_probabilities(tree: TokenTree) -> list[float]:
    """Probability that acceptance ends at the root, at node 0, at node 1, and so on."""
    paths, ends = [1.0], [1.0]
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        path = paths[parent + 1] * confidence
        paths.append(path)
        ends.append(path)
        ends[parent + 1] -= path
    return [max(0.0, end) for end in ends]


def fan_out(tree: TokenTree, strengths: Sequence[float]) -> tuple[bytes, ...]:
    """For each drafter the weights of all endpoints, one byte each, the root's first.

    In falling order of probability, each endpoint is assigned to the drafter with the least load
    for its strength, so that every endpoint has one owner.
    """
    ends = endpoint_probabilities(tree)
    shares = [bytearray([OTHERS]) * len(ends) for _ in strengths]
    loads = [0.0] * len(strengths)
    for endpoint in sorted(range(len(ends)), key=ends.__getitem__, reverse=True):
        end, least, lowest = ends[endpoint], 0, inf
        for drafter, strength in enumerate(strengths):
            would_be = (loads[drafter] + end) / strength
            if would_be < lowest:
                least, lowest = drafter, would_be
        loads[least] += end
        shares[least][endpoint] = OWN
    return tuple(map(bytes, shares))
