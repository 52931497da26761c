"""A drafter's guesses of what `sampling.draw` gives to the target, many rows at once.

A guess ranks tokens by the drafter's own log q~, plus the target's noise above temperature 0. Its
confidence is the token's share exp(score) / sum of exp(scores): the probability that it stays the
highest one if the target's scores are the drafter's with Gumbel noise of their own.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.gumbel import noise_key
from edgecosine.engine.sampling import scores, support
from edgecosine.protocol.wire.messages import SharedNoise


@dataclass(frozen=True, slots=True)
class DraftTokens:
    """The best tokens for one position, best first, and the confidence in each."""

    tokens: list[int]
    confidences: list[float]


def guess(
    logits: torch.Tensor,  # [rows, vocabulary] float32
    positions: Sequence[int],
    couplings: Sequence[SharedNoise],
    count: int,
    kernels: Kernels | None,
) -> list[DraftTokens]:
    """The `count` best guesses for each row."""
    if kernels is not None and logits.device.type == "cpu" and all(map(cuts_nothing, couplings)):
        return _guess_by_kernel(logits, positions, couplings, count, kernels)
    if not all(coupling.is_greedy for coupling in couplings):
        rows = zip(logits, positions, couplings, strict=True)
        return _read([_rank(row, position, how, count) for row, position, how in rows])
    best = torch.topk(logits, min(count, logits.shape[1]))
    shares = (best.values - torch.logsumexp(logits, 1, keepdim=True)).exp()
    return _read(list(zip(best.indices, shares, strict=True)))


def cuts_nothing(coupling: SharedNoise) -> bool:
    """Whether all tokens stay in the draw."""
    is_whole = coupling.top_k == 0 and coupling.top_p == 1.0 and coupling.min_p == 0.0
    return is_whole or coupling.is_greedy


def _rank(
    logits: torch.Tensor, position: int, coupling: SharedNoise, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if coupling.is_greedy:
        tokens, ranked = torch.arange(logits.numel(), device=logits.device), logits.double()
    else:
        candidates = support(logits, coupling)
        tokens = candidates.tokens
        ranked = scores(candidates, seed_of(coupling), position)
    best = torch.topk(ranked, min(count, ranked.numel()))
    shares = (best.values - torch.logsumexp(ranked, 0)).exp()
    return tokens[best.indices], shares


def _read(found: list[tuple[torch.Tensor, torch.Tensor]]) -> list[DraftTokens]:
    """Tokens and shares of all rows by two copies, for each waits for the device."""
    if not found:
        return []
    ends = list(itertools.accumulate(len(tokens) for tokens, _ in found))
    tokens = torch.cat([tokens for tokens, _ in found]).tolist()
    shares = torch.cat([shares.double() for _, shares in found]).tolist()
    starts = [0, *ends]
    pairs = zip(starts, ends, strict=False)
    return [DraftTokens(tokens[start:end], shares[start:end]) for start, end in pairs]


def _guess_by_kernel(
    logits: torch.Tensor,
    positions: Sequence[int],
    couplings: Sequence[SharedNoise],
    count: int,
    kernels: Kernels,
) -> list[DraftTokens]:
    rows, vocabulary = logits.shape
    count = min(count, vocabulary)
    tokens = (ctypes.c_int64 * (rows * count))()
    shares = (ctypes.c_float * (rows * count))()
    inverse = (ctypes.c_float * rows)(*map(inverse_temperature, couplings))
    is_noisy = (ctypes.c_uint8 * rows)(*(not c.is_greedy for c in couplings))
    keys = (ctypes.c_uint64 * rows)(
        *(
            0 if coupling.is_greedy else noise_key(seed_of(coupling), position)
            for position, coupling in zip(positions, couplings, strict=True)
        )
    )
    kernels.library.edgecosine_rank(
        logits.data_ptr(), rows, vocabulary, inverse, is_noisy, keys, count, tokens, shares
    )
    starts = range(0, rows * count, count)
    return [DraftTokens(tokens[i : i + count], shares[i : i + count]) for i in starts]


def inverse_temperature(coupling: SharedNoise) -> float:
    """What logits are multiplied by; 1 where the draw is greedy."""
    return 1.0 if coupling.is_greedy else 1.0 / coupling.temperature


def seed_of(coupling: SharedNoise) -> int:
    """The noise's 64-bit seed."""
    return int.from_bytes(coupling.seed, "little")
