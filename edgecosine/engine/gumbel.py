"""Gumbel noise that target and drafters share without exchanging it (Daliri et al.,
arXiv 2408.07978): a pure function of (seed, position, token), equal on every node and device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from edgecosine.fusion.shared_noise import FIRST, GOLDEN, SECOND, noise_key

_MASK = 2**64 - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(seed: int, position: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise for the token ids `tokens` at one position; float64, same shape.

    A counter-based generator: the key of (seed, position) plus the token id times an odd constant,
    through the finalizer of SplitMix64 (Steele et al., 2014); 52 bits make a uniform in (0, 1).
    """
    return _gumbel(_signed(noise_key(seed, position)), tokens)


def gumbel_rows(seed: int, positions: Iterable[int], tokens: torch.Tensor) -> torch.Tensor:
    """The noise of many positions, float64 [positions, tokens]."""
    keys = torch.tensor([_signed(noise_key(seed, position)) for position in positions])
    return _gumbel(keys.to(tokens.device)[:, None], tokens)


def _gumbel(key: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    x = tokens.to(torch.int64) * _signed(GOLDEN) + key
    x = (x ^ _shift(x, 30)) * _signed(FIRST)
    x = (x ^ _shift(x, 27)) * _signed(SECOND)
    x = x ^ _shift(x, 31)
    uniform = (_shift(x, 12).to(torch.float64) + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))
