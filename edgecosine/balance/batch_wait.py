"""Whether a forward pass starts at once or waits for requests that are expected soon."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec


class ExpectedArrival(msgspec.Struct, frozen=True):
    """A request that is expected at the target in `in_s` seconds, with `rows` rows."""

    in_s: float
    rows: int


def batch_wait_s(
    rows: int, arrivals: Sequence[ExpectedArrival], pass_s: Callable[[int], float]
) -> float | None:
    """Seconds by which to delay a pass of `rows` rows; None to start it at once.

    Requests that miss the pass share another one. Only those count that arrive before the pass
    would end. If the pass waits for the first n, the target idles until the n-th arrives, runs a
    pass with them and one for the rest. The n that takes the least of the target's time is best.
    """
    soon_s = pass_s(rows)
    coming = [arrival for arrival in arrivals if arrival.in_s < soon_s]
    coming.sort(key=lambda arrival: arrival.in_s)
    rest = sum(arrival.rows for arrival in coming)
    best: float | None = None
    least_s = soon_s + (pass_s(rest) if coming else 0.0)
    for count, arrival in enumerate(coming, start=1):
        rows, rest = rows + arrival.rows, rest - arrival.rows
        wait_s = max(0.0, arrival.in_s)
        taken_s = wait_s + pass_s(rows) + (pass_s(rest) if count < len(coming) else 0.0)
        if taken_s < least_s:
            best, least_s = wait_s, taken_s
    return best
