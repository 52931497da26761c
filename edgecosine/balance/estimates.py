"""Measured speeds, smoothed: how long a drafter, a link and a target pass take. Pure; times in
seconds are handed in."""

from __future__ import annotations

from dataclasses import dataclass, field

SMOOTHING = 0.2


def smooth(old: float | None, new: float, share: float = SMOOTHING) -> float:
    """Exponentially weighted moving average; the first value is taken as it is."""
    return new if old is None else old + share * (new - old)


@dataclass(slots=True)
class DrafterSpeed:
    """How fast one drafter answers."""

    token_s: float | None = None
    """Compute per draft token."""
    overhead_s: float | None = None
    """Ask to answer, less the compute: network, queue, both event loops."""

    def observe(self, elapsed_s: float, compute_s: float, num_tokens: int) -> None:
        """Learn from one answered ask."""
        if num_tokens:
            self.token_s = smooth(self.token_s, compute_s / num_tokens)
        self.overhead_s = smooth(self.overhead_s, max(0.0, elapsed_s - compute_s))

    def observe_late(self, waited_s: float) -> None:
        """Learn from an ask that was not answered in time: at least this long."""
        self.overhead_s = smooth(self.overhead_s, max(waited_s, self.overhead_s or 0.0), 0.5)

    def expected_s(self, num_tokens: int) -> float:
        """Ask to answer for a draft of `num_tokens`; optimistic before the first measurement."""
        return (self.overhead_s or 0.0) + num_tokens * (self.token_s or 0.0)


@dataclass(slots=True)
class PassCost:
    """Target pass time by number of rows: smoothed measurements, interpolated between."""

    by_rows: dict[int, float] = field(default_factory=dict)

    def observe(self, rows: int, elapsed_s: float) -> None:
        """Learn from one pass."""
        self.by_rows[rows] = smooth(self.by_rows.get(rows), elapsed_s, 0.1)

    def expected_s(self, rows: int) -> float:
        """Expected time of a pass; 0 before the first measurement.

        Between measured sizes linear, beyond them in proportion to the last slope; never less than
        a smaller pass.
        """
        if rows in self.by_rows:
            return self.by_rows[rows]
        below = max((r for r in self.by_rows if r < rows), default=None)
        above = min((r for r in self.by_rows if r > rows), default=None)
        if below is None and above is None:
            return 0.0
        if below is None:
            assert above is not None
            return self.by_rows[above]
        if above is None:
            return self.by_rows[below]
        share = (rows - below) / (above - below)
        return self.by_rows[below] + share * (self.by_rows[above] - self.by_rows[below])
