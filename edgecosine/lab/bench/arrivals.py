"""Seeded arrival times of an open load, in seconds from the start of a run."""

from __future__ import annotations

import math
import random

from edgecosine.errors import ConfigError


def fluctuating(
    low_per_s: float, high_per_s: float, period_s: float, duration_s: float, seed: int
) -> list[float]:
    """Arrivals of a Poisson process whose rate rises from low to high and falls again each period.

    They are made by thinning (Lewis and Shedler, 1979): arrivals at the highest rate are drawn, and
    each is kept with probability (rate at its time) / (highest rate).

    Raises ConfigError for impossible rates.
    """
    if not 0 < low_per_s <= high_per_s < math.inf:
        allowed = "rates above 0, the lower one first"
        raise ConfigError("rate", f"{low_per_s} to {high_per_s}", allowed)
    rng, now, arrivals = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(high_per_s)) < duration_s:
        swing = (1 - math.cos(2 * math.pi * now / period_s)) / 2
        rate_per_s = low_per_s + (high_per_s - low_per_s) * swing
        if rng.random() * high_per_s < rate_per_s:
            arrivals.append(now)
    return arrivals
