"""How long to wait before trying again: longer each time, and never two nodes in step."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubles from `first_s` to `longest_s` seconds, of which a random share of half is cut off."""

    first_s: float = 0.25
    longest_s: float = 15.0

    def delay_s(self, attempts: int, chance: float | None = None) -> float:
        """Seconds to wait after so many failed attempts; `chance` is in 0..1, else it is drawn."""
        full_s = min(
            self.longest_s,
            self.first_s * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS),
        )
        share = random.random() if chance is None else chance
        return full_s * (1.0 - 0.5 * share)
