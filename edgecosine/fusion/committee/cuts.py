"""The tokens that top-k, top-p and min-p keep of a committee's distribution, as far as its bounds
prove them.

Only a head of the distribution is known. The cuts are proven when the head is long enough: for
top-k it has k tokens; for min-p the bound of all other tokens is below the floor; for top-p the
number of kept tokens is the same for the least and the most probability, at the temperature, that
the other tokens can have together.
"""

from __future__ import annotations

import numpy as np

from edgecosine.fusion.committee.ballot import Floats, Ids
from edgecosine.fusion.committee.bounds import SLACK, Bounds
from edgecosine.protocol.api.request import Sampling


def kept(bounds: Bounds, sampling: Sampling, *, has_bans: bool) -> Ids | None:
    """Indexes into `bounds.ids` of the tokens that can be drawn; None where that is not proven.

    `has_bans` is whether some tokens cannot be drawn, which then may have all the rest.

    The order of the cuts is that of `engine/sampling.py`; the most probable token always stays.
    """
    order, adjusted = _ranked(bounds)
    rest = bounds.rest_bound
    head = order.size if bounds.is_whole else int((adjusted > rest + SLACK).sum())
    if sampling.top_k:
        if head < sampling.top_k and not bounds.is_whole:
            return None
        head = min(head, sampling.top_k)
    if not head:
        return None
    if adjusted[0] == -np.inf:  # the whole vocabulary is banned
        return order[:1]
    is_closed = sampling.top_k > 0 or bounds.is_whole
    inverse = 1.0 / sampling.temperature
    scaled = (adjusted - adjusted[0]) * inverse
    size: int | None = head
    if sampling.top_p < 1.0:
        mass = np.cumsum(np.exp(scaled[: head if is_closed else None]))
        least, most = (
            (0.0, 0.0) if is_closed else _rest_mass(bounds, adjusted[0], inverse, has_bans=has_bans)
        )
        totals = float(mass[-1]) + least, float(mass[-1]) + most
        size = _nucleus(mass[:head], totals, sampling.top_p, is_closed=is_closed)
    elif not is_closed and not (rest + SLACK - adjusted[0]) * inverse < np.log(sampling.min_p):
        return None
    if size is None:
        return None
    if sampling.min_p > 0.0:
        size = int((scaled[:size] >= np.log(sampling.min_p)).sum())
    return order[:size]


def _ranked(bounds: Bounds) -> tuple[Ids, Floats]:
    """The exact tokens' indexes and log P after offsets, highest first, then by id."""
    exact = np.flatnonzero(bounds.is_exact)
    adjusted = bounds.lower[exact] + bounds.offsets[exact]
    order = np.argsort(-adjusted, kind="stable")
    return exact[order], adjusted[order]


def _nucleus(
    mass: Floats, totals: tuple[float, float], top_p: float, *, is_closed: bool
) -> int | None:
    """Tokens that top-p keeps, by cumulative mass; None where the two totals differ on it."""
    before = np.concatenate([[0.0], mass[:-1]])
    fewest, most = (max(1, int((before < top_p * total).sum())) for total in totals)
    reaches = is_closed or float(mass[-1]) >= top_p * totals[1]
    return fewest if fewest == most and reaches else None


def _rest_mass(
    bounds: Bounds, highest: float, inverse: float, *, has_bans: bool
) -> tuple[float, float]:
    """Least and most of the sum of (P / P_highest)^(1/T) over all tokens that are not exact.

    Their probabilities u have a known sum R and a bound M. For 1/T >= 1, u^(1/T) is convex, so the
    sum is at most R M^(1/T - 1); for 1/T < 1 it is concave, so this is the least, and n equal
    probabilities give the most.
    """
    count = bounds.num_others + int((~bounds.is_exact).sum())
    rest = 1.0 - float(np.exp(bounds.lower[bounds.is_exact]).sum())
    bound = bounds.rest_bound
    if not count or bound == -np.inf:
        return 0.0, 0.0

    def extreme(mass: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(np.log(mass) + (inverse - 1.0) * bound - inverse * highest))

    def equal(mass: float) -> float:
        with np.errstate(over="ignore"):
            return float(count * np.exp(inverse * (np.log(mass / count) - highest)))

    low, high = rest - SLACK, max(rest, 0.0) + SLACK
    if has_bans:
        low = 0.0
    if inverse >= 1.0:
        return (equal(low) if low > 0.0 else 0.0), extreme(high)
    return (extreme(low) if low > 0.0 else 0.0), equal(high)
