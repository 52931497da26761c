"""Delays between attempts: exponential back-off with random jitter, so that nodes do not retry in
step."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s` seconds.

    jitter  the largest share of a delay that is taken off at random, in 0..1
    """

    first_s: float = 0.25
    longest_s: float = 15.0
    jitter: float = 0.5

    def delay_s(self, attempts: int, chance: float | None = None) -> float:
        """Seconds to wait after `attempts` failures; `chance` in 0..1 sets the jitter, None draws
        it."""
        full_s = min(
            self.longest_s,
            self.first_s * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS),
        )
        share = random.random() if chance is None else chance
        return full_s * (1.0 - self.jitter * share)
