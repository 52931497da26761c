"""Counter-based Gumbel noise: a pure function of (seed, absolute position, token id)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def gumbel_noise(seeds: Tensor, position: int, vocabulary: int) -> Tensor:
    """Noise (n, vocabulary) in float32 for the token at `position` of n texts with `seeds` (n,)."""
    with np.errstate(over="ignore"):
        rows = _mix(seeds.numpy().astype(np.uint64) + _GOLDEN)
        rows = _mix(rows + np.uint64(position) * _GOLDEN)
        tokens = np.arange(vocabulary, dtype=np.uint64) * _GOLDEN
        bits = _mix(rows[:, None] + tokens[None, :]) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy((-np.log(-np.log(uniform))).astype(np.float32))
