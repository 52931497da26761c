"""What kind of text a drafter is good for, learned from texts that it was tried on.

A text is a bag of its last tokens. The acceptance rate to expect on a new text is the mean over the
texts seen before, those that share its uncommon words counting most (Nadaraya and Watson, 1964), so
that one earlier request about a subject can send the next one to the right specialist.
"""

from __future__ import annotations

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

_TINY = 1e-9
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
class TextMemory:
    """Texts, and the hits and misses of each drafter on them."""

    _texts: Features = field(default_factory=lambda: np.zeros((MEMORY, DIMENSIONS), np.float32))
    """A ring; a node asks of it at every prompt and keeps its event loop waiting meanwhile."""
    _squares: Features = field(default_factory=lambda: np.zeros(MEMORY, np.float32))
    """Of the texts' lengths."""
    _sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(DIMENSIONS))
    _rates: list[Mapping[str, float]] = field(default_factory=list)
    _oldest: int = 0

    def __len__(self) -> int:
        return len(self._rates)

    def add(self, text: Features, outcomes: Mapping[str, tuple[float, float]]) -> None:
        """Remember (hits, misses) by drafter on one text."""
        rates = {name: h / (h + m) for name, (h, m) in outcomes.items() if h + m >= ENOUGH}
        if not rates:
            return
        if len(self) < MEMORY:
            place = len(self)
            self._rates.append(rates)
        else:
            place, self._oldest = self._oldest, (self._oldest + 1) % MEMORY
            self._rates[place] = rates
        self._sum += text
        self._sum -= self._texts[place]
        self._texts[place], self._squares[place] = text, text @ text

    def expect(self, text: Features) -> dict[str, Expectation]:
        """What to expect of each drafter that was ever tried, on a text like this."""
        if len(self) < 2:
            return {}
        shares = np.exp(SHARPNESS * self._cosines(text))
        sums: dict[str, tuple[float, float]] = {}
        for share, rates in zip(shares.tolist(), self._rates, strict=True):
            for name, rate in rates.items():
                total, norm = sums.get(name, (0.0, 0.0))
                sums[name] = total + share * rate, norm + share
        return {name: Expectation(total / norm, norm) for name, (total, norm) in sums.items()}

    def _cosines(self, text: Features) -> Features:
        """Between this text and each one that is remembered, all of them less their mean."""
        texts, squares = self._texts[: len(self)], self._squares[: len(self)]
        mean = (self._sum / len(self)).astype(np.float32)
        off = text - mean
        # Not by `@`: BLAS would share so large a product among threads, which then keep spinning on
        # the cores of the passes.
        along_mean, along_off = np.einsum("td,vd->vt", texts, np.stack((mean, off)))
        lengths = np.sqrt(np.maximum(squares - 2 * along_mean + mean @ mean, _TINY))
        length = max(float(np.linalg.norm(off)), _TINY)
        cosines: Features = np.clip((along_off - mean @ off) / (lengths * length), -1.0, 1.0)
        return cosines
