"""When a pass starts: at once, or when those are there too who are about to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpectedArrival:
    """A request on its way to the target: expected in so many seconds, with so many rows."""

    in_s: float
    rows: int


def hold_s(
    rows: int, latecomers: Sequence[ExpectedArrival], pass_s: Callable[[int], float]
) -> float | None:
    """How long a pass of `rows` rows is worth holding back; None to start it at once.

    Whoever misses it shares another one; only those count who come before it would be over. Held
    back for the first n, the target idles until the last of these is there, and makes a pass with
    them and one for the rest. The n that takes the least of its time is best.
    """
    soon_s = pass_s(rows)
    coming = [late for late in latecomers if late.in_s < soon_s]
    coming.sort(key=lambda late: late.in_s)
    rest = sum(late.rows for late in coming)
    best: float | None = None
    least_s = soon_s + (pass_s(rest) if coming else 0.0)
    for count, late in enumerate(coming, start=1):
        rows, rest = rows + late.rows, rest - late.rows
        wait_s = max(0.0, late.in_s)
        taken_s = wait_s + pass_s(rows) + (pass_s(rest) if count < len(coming) else 0.0)
        if taken_s < least_s:
            best, least_s = wait_s, taken_s
    return best
