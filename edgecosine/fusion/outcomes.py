"""Outcomes of a verification, shared out among the drafters that read on below them (outcome
fan-out, after Speculative Speculative Decoding).

An outcome is the node at which acceptance ends, the root included; the target's own token follows
it. Drafters that all begin with the most probable ones find much the same; with a share each, what
they find together holds more of what may come.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.protocol.wire.tree import TokenTree

OWN, OTHERS = 255, 64
"""How much a drafter is to care about its own outcomes, and about the others'. These it does not
leave out: who is in charge of them may come late, or be wrong about the token that follows."""


def outcome_masses(tree: TokenTree) -> list[float]:
    """Probability that acceptance ends at the root, at node 0, at node 1, and so on."""
    reached, masses = [1.0], [1.0]
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        reach = reached[parent + 1] * confidence
        reached.append(reach)
        masses.append(reach)
        masses[parent + 1] -= reach
    return [max(0.0, mass) for mass in masses]


def fan_out(tree: TokenTree, strengths: Sequence[float]) -> tuple[bytes, ...]:
    """For each drafter one byte per outcome (the root's first): how much it is to care.

    The most probable outcomes are given out first, each to whoever has the least to do for its
    strength, so that every outcome is somebody's own.
    """
    masses = outcome_masses(tree)
    shares = [bytearray([OTHERS]) * len(masses) for _ in strengths]
    loads = [0.0] * len(strengths)
    for outcome in sorted(range(len(masses)), key=masses.__getitem__, reverse=True):
        would_be = [
            (load + masses[outcome]) / strength
            for load, strength in zip(loads, strengths, strict=True)
        ]
        least = would_be.index(min(would_be))
        loads[least] += masses[outcome]
        shares[least][outcome] = OWN
    return tuple(map(bytes, shares))
