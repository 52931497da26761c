"""Predicts a drafter's acceptance rate on a text from its rates on similar texts.

A text is a bag of its last tokens. The expected rate is a kernel regression over earlier texts, in
which those that share uncommon tokens weigh most (Nadaraya and Watson, 1964), so that one earlier
request about a subject can route the next one to the right specialist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

WINDOW = 96
"""Last tokens that represent a text."""
DIMENSIONS = 2048
MEMORY = 256
"""Texts that are kept."""
SHARPNESS = 12.0
"""A text weighs exp(SHARPNESS * cosine)."""
ENOUGH = 4.0
"""Judged tokens of a drafter on a text from which on its rate is kept."""

Features = npt.NDArray[np.float32]

_TINY = 1e-9
_ODD = np.uint64(0x9E3779B1)
_SHIFT = np.uint64(7)


def features(tokens: Sequence[int]) -> Features:
    """Damped counts [DIMENSIONS] of the hashed last tokens."""
    ids = np.asarray(tokens[-WINDOW:], dtype=np.uint64)
    bins = (ids * _ODD >> _SHIFT) % np.uint64(DIMENSIONS)
    counts = np.bincount(bins.astype(np.int64), minlength=DIMENSIONS)
    return np.log1p(counts).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Expectation:
    """An acceptance rate, and the number of similar texts that it rests on."""

    rate: float
    weight: float


@dataclass(slots=True)
class TextMemory:
    """Texts, and the hits and misses of each drafter on them."""

    _texts: Features = field(default_factory=lambda: np.zeros((MEMORY, DIMENSIONS), np.float32))
    """A ring buffer [MEMORY, DIMENSIONS], read in the event loop at every prompt."""
    _squares: Features = field(default_factory=lambda: np.zeros(MEMORY, np.float32))
    """Squared norms of the texts."""
    _sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(DIMENSIONS))
    _rates: list[Mapping[str, float]] = field(default_factory=list)
    _oldest: int = 0

    def __len__(self) -> int:
        return len(self._rates)

    def add(self, text: Features, outcomes: Mapping[str, tuple[float, float]]) -> None:
        """Keep the rate of each drafter on one text, given (hits, misses) by drafter."""
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
        """The rate of each drafter to expect on a text; empty before two texts are kept."""
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
        """Cosine of this text and each one that is kept, after their mean is subtracted."""
        texts, squares = self._texts[: len(self)], self._squares[: len(self)]
        mean = (self._sum / len(self)).astype(np.float32)
        off = text - mean
        # Not `@`: BLAS would split the product among threads, which then keep spinning on the cores
        # of the forward passes.
        along_mean, along_off = np.einsum("td,vd->vt", texts, np.stack((mean, off)))
        lengths = np.sqrt(np.maximum(squares - 2 * along_mean + mean @ mean, _TINY))
        length = max(float(np.linalg.norm(off)), _TINY)
        cosines: Features = np.clip((along_off - mean @ off) / (lengths * length), -1.0, 1.0)
        return cosines
