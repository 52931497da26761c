"""Corrects a drafter's confidences by the acceptance rates that they led to.

Confidences of different models are not comparable: an over-confident drafter would dominate every
union. Each drafter therefore has its own map from confidence to acceptance rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BINS = 10
PRIOR_WEIGHT = 4.0
"""Judged tokens that the prior counts for in each bin."""
MEMORY = 2000.0
"""Judged tokens after which older evidence has faded to 1/e."""
_FADE = 1.0 - 1.0 / MEMORY


def _zeros() -> list[float]:
    return [0.0] * BINS


@dataclass(slots=True)
class Calibration:
    """Acceptance rate by confidence bin, with the drafter's own confidence as the prior."""

    accepted: list[float] = field(default_factory=_zeros)
    judged: list[float] = field(default_factory=_zeros)

    def observe(self, judged: Sequence[tuple[float, bool]]) -> None:
        """Learn from tokens whose parents were accepted: the confidence of each, and whether it was
        accepted."""
        bins = _bins([confidence for confidence, _ in judged])
        for index, (_, is_accepted) in zip(bins, judged, strict=True):
            self.accepted[index] = self.accepted[index] * _FADE + is_accepted
            self.judged[index] = self.judged[index] * _FADE + 1.0

    def probability(self, confidence: float) -> float:
        """Probability that a token of this confidence is accepted, given that its parent is."""
        return self.probabilities((confidence,))[0]

    def probabilities(self, confidences: Sequence[float]) -> tuple[float, ...]:
        """`probability` of each of many confidences."""
        accepted, weights = self.accepted, [judged + PRIOR_WEIGHT for judged in self.judged]
        return tuple(
            [
                (accepted[index] + PRIOR_WEIGHT * confidence) / weights[index]
                for index, confidence in zip(_bins(confidences), confidences, strict=True)
            ]
        )


def _bins(confidences: Sequence[float]) -> list[int]:
    # Drafts have up to a hundred nodes; a call for each would cost more than the rest.
    last = BINS - 1
    return [index if (index := int(each * BINS)) < last else last for each in confidences]
