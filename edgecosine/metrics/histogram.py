"""A histogram with fixed bounds. Recording a value costs less than a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

TIME_BOUNDS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0,
    50.0, 100.0, 250.0,
)  # fmt: skip
"""One series for all times: two histograms can be compared bucket by bucket."""


class Histogram:
    """Counts of values by the smallest bound that is not below them."""

    def __init__(self, bounds: Sequence[float] = TIME_BOUNDS_S) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0
        """Sum of the values."""

    def __repr__(self) -> str:
        return f"<Histogram [{sum(self._counts)} values, total {self.total:.3f}]>"

    def observe(self, value: float) -> None:
        """Record a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[float, int]]:
        """Each bound with the number of values up to it; the last bound is infinite."""
        bounds = (*self._bounds, float("inf"))
        return list(zip(bounds, accumulate(self._counts), strict=True))
