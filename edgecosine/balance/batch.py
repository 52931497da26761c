"""When a pass starts: at once, or when those are there too who are about to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latecomer:
    """A request on its way to the target: expected in so many seconds, with so many rows."""

    in_s: float
    rows: int


def hold_s(
    rows: int, latecomers: Sequence[Latecomer], pass_s: Callable[[int], float]
) -> tuple[float, int]:
    """How long a pass of `rows` rows is worth holding back, and for how many latecomers.

    Whoever misses a pass needs one more. Held back for the first n, the target idles until the last
    of these is there and makes one pass, `pass_s(rows + theirs)`; else it makes two. The n that
    saves the most of the target's time is best; (0.0, 0) when none saves any.
    """
    best_s, best_count, most_saved_s = 0.0, 0, 0.0
    alone_s, late_rows = pass_s(rows), 0
    for count, late in enumerate(sorted(latecomers, key=lambda late: late.in_s), start=1):
        late_rows += late.rows
        wait_s = max(0.0, late.in_s)
        saved_s = alone_s + pass_s(late_rows) - pass_s(rows + late_rows) - wait_s
        if saved_s > most_saved_s:
            best_s, best_count, most_saved_s = wait_s, count, saved_s
    return best_s, best_count
