"""Chooses the works that share the next pass, for policies that restrict batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine.balance.baselines.rules import PassTime, choose_batch


@dataclass(frozen=True, slots=True)
class OneGroup:
    """A pass takes only the requests of one group (SpecEdge)."""

    group: int

    def choose(self, rows: Sequence[int], pass_s: PassTime) -> list[int]:
        """All works of the group."""
        return list(range(len(rows)))


@dataclass(frozen=True, slots=True)
class ByObjective:
    """A pass takes the works that minimise CoSine's objective."""

    weight: float

    def choose(self, rows: Sequence[int], pass_s: PassTime) -> list[int]:
        """The places of the chosen works."""
        return choose_batch(rows, self.weight, pass_s)
