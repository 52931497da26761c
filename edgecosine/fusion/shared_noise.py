"""Gumbel noise that nodes share without exchanging it (Daliri et al., arXiv 2408.07978), in numpy:
a pure function of (seed, position, token). `engine/gumbel.py` computes the same on a device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
_MASK = 2**64 - 1


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * FIRST) & _MASK
    value = ((value ^ (value >> 27)) * SECOND) & _MASK
    return value ^ (value >> 31)


def noise_seed(seed: int) -> int:
    """The 64-bit term that a seed adds to positions before they are mixed."""
    return _mix(seed + GOLDEN)


def noise_key(seed: int, position: int) -> int:
    """The 64-bit term that a position adds to token ids before they are mixed."""
    return _mix(noise_seed(seed) + position * GOLDEN)


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for token ids at one position; same shape.

    A counter-based generator: the key of (seed, position) plus the token id times an odd constant,
    through the finalizer of SplitMix64 (Steele et al., 2014); 52 bits make a uniform in (0, 1).
    """
    x = tokens.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(noise_key(seed, position))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    x ^= x >> np.uint64(31)
    uniform = ((x >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
