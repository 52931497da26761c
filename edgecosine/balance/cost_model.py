"""Measured speeds, smoothed: how long a drafter, a link and a target pass take. Pure; times in
seconds are handed in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

SMOOTHING = 0.2
MOST_CROWDED = 8.0


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
    ahead_step_s: float | None = None
    """Compute per step of a draft ahead."""

    def observe(
        self, elapsed_s: float, compute_s: float, num_tokens: int, *, is_disturbed: bool = False
    ) -> None:
        """Learn from one answered ask.

        `is_disturbed` says that other drafters were asked at the same moment, or that the target
        was at work beside. Where they share a machine that slows them all down, so such an answer
        may only lower an estimate; the overhead is first learned from an ask that was waited for.
        """
        if num_tokens:
            token_s = compute_s / num_tokens
            if not is_disturbed or self.token_s is None:
                self.token_s = smooth(self.token_s, token_s)
            else:
                self.token_s = min(self.token_s, token_s)
        overhead_s = max(0.0, elapsed_s - compute_s)
        if not is_disturbed:
            self.overhead_s = smooth(self.overhead_s, overhead_s)
        elif self.overhead_s is not None:
            self.overhead_s = min(self.overhead_s, overhead_s)

    def observe_ahead(self, compute_s: float, num_steps: int) -> None:
        """Learn from a draft ahead that was not cut short."""
        self.ahead_step_s = smooth(self.ahead_step_s, compute_s / max(1, num_steps))

    def observe_late(self, waited_s: float) -> None:
        """Learn from an ask that was not answered in time: at least this long."""
        self.overhead_s = smooth(self.overhead_s, max(waited_s, self.overhead_s or 0.0), 0.5)

    def expected_s(self, num_tokens: int) -> float:
        """Ask to answer for a draft of `num_tokens`; optimistic before the first measurement."""
        return (self.overhead_s or 0.0) + num_tokens * (self.token_s or 0.0)


@dataclass(slots=True)
class ContentionFactor:
    """How much longer several drafters take together than the slowest of them alone: some of them
    share a machine."""

    by_count: dict[int, float] = field(default_factory=dict)

    def observe(self, count: int, expected_s: float, waited_s: float) -> None:
        """So many were asked at once; `expected_s` is what the slowest takes alone."""
        if count > 1 and expected_s > 0.0:
            ratio = min(MOST_CROWDED, max(1.0, waited_s / expected_s))
            self.by_count[count] = smooth(self.by_count.get(count), ratio)

    def factor(self, count: int) -> float:
        """1 for one drafter; for a number not seen yet that of the next smaller one."""
        known = [seen for seen in self.by_count if seen <= count]
        return self.by_count[max(known)] if count > 1 and known else 1.0


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass of the target was. `cycle_s` is the time since the pass before it ended."""

    num_rows: int
    elapsed_s: float
    cycle_s: float = 0.0
    num_tokens: int = 0
    """Tokens committed by it."""
    is_prefill: bool = True
    """Whether prompts were read in it; such a pass says nothing of decoding."""


@dataclass(slots=True)
class PassCost:
    """Target pass time by number of rows: smoothed measurements, interpolated between."""

    by_rows: dict[int, float] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)
    """In order; empty when out of date."""
    _shortest: list[float] = field(default_factory=list)
    """For each size the shortest time from it on."""
    _spans: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """What `span` gave since the last measurement."""

    def observe(self, rows: int, elapsed_s: float) -> None:
        """Learn from one pass."""
        self.by_rows[rows] = smooth(self.by_rows.get(rows), elapsed_s, 0.1)
        self._sizes = []
        self._spans = {}

    def span(self, first: int, count: int) -> list[float]:
        """Expected times of passes of first, first + 1, ... rows; not to be changed."""
        found = self._spans.get((first, count))
        if found is None:
            found = [self.expected_s(rows) for rows in range(first, first + count)]
            self._spans[first, count] = found
        return found

    def expected_s(self, rows: int) -> float:
        """Expected time of a pass; 0 before the first measurement.

        Between measured sizes linear, beyond them in proportion to the last slope; never less than
        a smaller pass.
        """
        sizes, shortest = self._curve()
        if not sizes:
            return 0.0
        at = bisect_right(sizes, rows)
        if at == 0 or len(sizes) == 1:
            return shortest[0]
        at = min(at, len(sizes) - 1)
        low, high, low_s, high_s = sizes[at - 1], sizes[at], shortest[at - 1], shortest[at]
        return low_s + (rows - low) / (high - low) * (high_s - low_s)

    def _curve(self) -> tuple[list[int], list[float]]:
        if not self._sizes:
            self._sizes = sorted(self.by_rows)
            # A smaller pass costs no more than a larger one. Of two that disagree the quicker is
            # believed: a size that is thought too cheap is tried and corrected, one that is
            # thought too dear would never be tried again.
            falling = accumulate((self.by_rows[size] for size in reversed(self._sizes)), min)
            self._shortest = [*falling][::-1]
        return self._sizes, self._shortest
