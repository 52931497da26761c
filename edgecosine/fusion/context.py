"""What kind of text a drafter is good for, learned from texts that it was tried on.

A text is a bag of its last tokens. The acceptance rate to expect on a new text is the mean over the
texts seen before, those that share its uncommon words counting most (Nadaraya and Watson, 1964), so
that one earlier request about a subject can send the next one to the right specialist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

WINDOW = 96
"""Tokens that tell what a text is about now."""
DIMENSIONS = 2048
MEMORY = 256
"""Texts that are remembered."""
SHARPNESS = 12.0
"""How much more a similar text counts: exp(SHARPNESS * cosine)."""
ENOUGH = 4.0
"""Judged tokens from which a drafter counts as tried on a text."""

Features = npt.NDArray[np.float32]

_ODD = np.uint64(0x9E3779B1)
_SHIFT = np.uint64(7)


def features(tokens: Sequence[int]) -> Features:
    """Damped counts [DIMENSIONS] of the hashed last tokens."""
    ids = np.asarray(tokens[-WINDOW:], dtype=np.uint64)
    places = (ids * _ODD >> _SHIFT) % np.uint64(DIMENSIONS)
    counts = np.bincount(places.astype(np.int64), minlength=DIMENSIONS)
    return np.log1p(counts).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Expectation:
    """An acceptance rate, and how many texts much like this one it rests on."""

    rate: float
    weight: float


@dataclass(slots=True)
class Experience:
    """Texts, and the hits and misses of each drafter on them."""

    _texts: deque[Features] = field(default_factory=lambda: deque(maxlen=MEMORY))
    _rates: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=MEMORY))
    _mean: Features | None = None
    _directions: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: Features, outcomes: Mapping[str, tuple[float, float]]) -> None:
        """Remember (hits, misses) by drafter on one text."""
        rates = {name: h / (h + m) for name, (h, m) in outcomes.items() if h + m >= ENOUGH}
        if rates:
            self._texts.append(text)
            self._rates.append(rates)
            self._directions = None

    def expect(self, text: Features) -> dict[str, Expectation]:
        """What to expect of each drafter that was ever tried, on a text like this."""
        if len(self._texts) < 2:
            return {}
        if self._directions is None or self._mean is None:
            texts = np.stack(self._texts)
            self._mean = texts.mean(axis=0)
            self._directions = _unit(texts - self._mean)
        shares = np.exp(SHARPNESS * (self._directions @ _unit(text - self._mean)))
        sums: dict[str, tuple[float, float]] = {}
        for share, rates in zip(shares.tolist(), self._rates, strict=True):
            for name, rate in rates.items():
                total, norm = sums.get(name, (0.0, 0.0))
                sums[name] = total + share * rate, norm + share
        return {name: Expectation(total / norm, norm) for name, (total, norm) in sums.items()}


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: npt.NDArray[np.float32] = (vectors / np.maximum(norms, 1e-9)).astype(np.float32)
    return units
