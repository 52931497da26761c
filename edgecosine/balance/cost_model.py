"""Smoothed measurements of drafters, links and forward passes, and the times expected from them.
Times are in seconds and are passed in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import msgspec
import numpy as np

SMOOTHING = 0.2
EXACT_ROWS = 64
NOTICED = 0.01
"""Change of a smoothed time for which expected times are computed again."""
SPARE_ROWS = 64
"""Rows beyond those of a plan for which times are computed at once, for the plans after it."""
REMEMBERED_ROWS = 1024
"""Rows of former plans for which times are computed, at most: a long prompt has many more."""
_SIZE_BITS = 5
"""Significant bits of larger sizes."""


def smooth(old: float | None, new: float, share: float = SMOOTHING) -> float:
    """Exponentially weighted moving average; without an old value the new one."""
    return new if old is None else old + share * (new - old)


@dataclass(slots=True)
class DrafterSpeed:
    """Times of one drafter."""

    token_s: float | None = None
    """Compute per step, which makes the draft a token longer."""
    overhead_s: float | None = None
    """Request to answer without the compute: network, queue, both event loops."""
    disturbed_overhead_s: float | None = None
    """The lowest overhead of disturbed answers, before any other."""
    ahead_step_s: float | None = None
    """Compute per step of a draft ahead."""
    ahead_overhead_s: float = 0.0
    """Request to answer of a draft ahead without the compute of its steps."""

    def observe(
        self, elapsed_s: float, compute_s: float, num_steps: int, *, is_disturbed: bool = False
    ) -> None:
        """Learn from one answer, and the steps that were made for it: none, if the drafter had
        drafted all of it ahead.

        `is_disturbed` if other drafters or the target computed at the same time. If they share a
        machine, they slow each other down, so such an answer may only lower an estimate; it never
        sets the first overhead.
        """
        if num_steps:
            token_s = compute_s / num_steps
            if not is_disturbed or self.token_s is None:
                self.token_s = smooth(self.token_s, token_s)
            else:
                self.token_s = min(self.token_s, token_s)
        overhead_s = max(0.0, elapsed_s - compute_s)
        if not is_disturbed:
            self.overhead_s = smooth(self.overhead_s, overhead_s)
        elif self.overhead_s is not None:
            self.overhead_s = min(self.overhead_s, overhead_s)
        else:
            former_s = self.disturbed_overhead_s
            self.disturbed_overhead_s = (
                overhead_s if former_s is None else min(former_s, overhead_s)
            )

    def observe_ahead(self, elapsed_s: float, compute_s: float, num_steps: int) -> None:
        """Learn from a draft ahead of `num_steps` steps."""
        self.ahead_step_s = smooth(self.ahead_step_s, compute_s / max(1, num_steps))
        self.ahead_overhead_s = smooth(self.ahead_overhead_s, max(0.0, elapsed_s - compute_s))

    def observe_ahead_late(self) -> None:
        """A draft ahead was not there in time: the next one has half a step less."""
        self.ahead_overhead_s += 0.5 * (self.ahead_step_s or self.token_s or 0.0)

    def steps_within(self, seconds: float) -> int | None:
        """Steps of a draft ahead that is there in `seconds`; None before a measurement."""
        step_s = self.ahead_step_s or self.token_s
        return max(0, int((seconds - self.ahead_overhead_s) / step_s)) if step_s else None

    def observe_late(self, waited_s: float) -> None:
        """Learn from a missed deadline: the overhead is at least the time waited."""
        self.overhead_s = smooth(self.overhead_s, max(waited_s, self.overhead_s or 0.0), 0.5)

    def believed_overhead_s(self, *, is_alone: bool) -> float:
        """The overhead to plan with. Disturbed answers only bound it from above: a request that is
        alone would wait for it, and believes the bound; beside others it is to be tried."""
        if self.overhead_s is None and is_alone:
            return self.disturbed_overhead_s or 0.0
        return self.overhead_s or 0.0

    def expected_s(self, num_tokens: int) -> float:
        """Request to answer for a draft of `num_tokens`; optimistic before a measurement."""
        return (self.overhead_s or 0.0) + num_tokens * (self.token_s or 0.0)


class PassReport(msgspec.Struct, frozen=True):
    """One forward pass of the target. `cycle_s` is the time since the end of the previous pass."""

    num_rows: int
    elapsed_s: float
    cycle_s: float = 0.0
    num_tokens: int = 0
    """Tokens that it committed."""
    num_accepted: int = 0
    """Of these, draft tokens."""
    num_prompt_rows: int = 0
    """Rows that read prompts."""
    beside_s: float = 0.0
    """Time of it in which drafters of the same machine had work."""


class PassCost:
    """Time of a forward pass by its rows, interpolated between smoothed measurements. Beyond
    EXACT_ROWS sizes that differ by less than 1/16 share one, so that their number is bounded."""

    def __init__(self) -> None:
        self.by_rows: dict[int, float] = {}
        self._curve: tuple[list[int], list[float]] | None = None
        """Measured sizes, and for each the shortest time of any size from it on; None if out of
        date."""
        self._read: dict[int, float] = {}
        """The measurements that it was computed from."""
        self._times: list[float] = []
        """Expected times of passes of 0, 1, ... rows, by the curve."""
        self._most_rows = 0
        """Of the largest pass whose time was asked for, up to REMEMBERED_ROWS."""

    def observe(self, rows: int, elapsed_s: float) -> None:
        """Learn from one pass."""
        size = _size(rows)
        moved_s = smooth(self.by_rows.get(size), elapsed_s, 0.1)
        self.by_rows[size] = moved_s
        read_s = self._read.get(size)
        if read_s is None or abs(moved_s - read_s) > NOTICED * read_s:
            self._curve, self._times = None, []

    def span(self, first: int, count: int) -> list[float]:
        """Expected times of `count` passes of first, first + 1, ... rows."""
        end = first + count
        if end > len(self._times):
            # Plans of co-batched requests begin at many sizes between two passes: those of the
            # passes before tell how many times are needed.
            most = max(end, self._most_rows)
            self._most_rows = min(most, REMEMBERED_ROWS)
            sizes, times = self._shortest()
            beyond = max(most, *sizes, 0) + SPARE_ROWS
            points = (*sizes, beyond), (*times, self.expected_s(beyond))
            self._times = np.interp(np.arange(most + SPARE_ROWS), *points).tolist()
        return self._times[first:end]

    def expected_s(self, rows: int) -> float:
        """Expected time of a pass; 0 before the first measurement.

        It is linear between measured sizes, follows the last slope beyond them, and is never below
        that of a smaller pass.
        """
        if rows < len(self._times):
            return self._times[rows]
        sizes, shortest = self._shortest()
        if not sizes:
            return 0.0
        at = bisect_right(sizes, rows)
        if at == 0 or len(sizes) == 1:
            return shortest[0]
        at = min(at, len(sizes) - 1)
        low, high, low_s, high_s = sizes[at - 1], sizes[at], shortest[at - 1], shortest[at]
        return low_s + (rows - low) / (high - low) * (high_s - low_s)

    def _shortest(self) -> tuple[list[int], list[float]]:
        if self._curve is None:
            sizes = sorted(self.by_rows)
            # A smaller pass costs no more than a larger one. If two measurements disagree, the
            # quicker one counts: a size with too low an estimate is used and measured again, one
            # with too high an estimate would not be.
            falling = accumulate((self.by_rows[size] for size in reversed(sizes)), min)
            self._curve, self._read = (sizes, [*falling][::-1]), {**self.by_rows}
        return self._curve


def _size(rows: int) -> int:
    if rows <= EXACT_ROWS:
        return rows
    step = 1 << rows.bit_length() - _SIZE_BITS
    return round(rows / step) * step
