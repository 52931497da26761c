"""Chooses draft tokens: predicts what `sampling.draw` returns to the target, many rows at once.

Tokens are ranked by the drafter's own log q~, plus the target's noise above temperature 0. The
confidence in a token is its share exp(score) / sum of exp(scores): the probability that it stays
the highest one if the target's scores are the drafter's plus independent Gumbel noise.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.sampling import scores, support
from edgecosine.fusion.shared_noise import noise_key
from edgecosine.protocol.wire.messages import SharedNoise


@dataclass(frozen=True, slots=True)
class DraftTokens:
    """Draft tokens for one position, the most probable first, and the confidence in each."""

    tokens: list[int]
    confidences: list[float]


def rank_draft_tokens(
    logits: torch.Tensor,  # [rows, vocabulary] float32
    positions: Sequence[int],
    noises: Sequence[SharedNoise],
    count: int,
    kernels: Kernels | None,
) -> list[DraftTokens]:
    """The `count` most probable draft tokens of each row."""
    if kernels is not None and logits.device.type == "cpu" and all(map(cuts_nothing, noises)):
        return _rank_by_kernel(logits, positions, noises, count, kernels)
    if not all(noise.is_greedy for noise in noises):
        rows = zip(logits, positions, noises, strict=True)
        return _to_lists([_rank(row, position, how, count) for row, position, how in rows])
    best = torch.topk(logits, min(count, logits.shape[1]))
    shares = (best.values - torch.logsumexp(logits, 1, keepdim=True)).exp()
    return _to_lists(list(zip(best.indices, shares, strict=True)))


def cuts_nothing(noise: SharedNoise) -> bool:
    """Whether sampling keeps the whole vocabulary."""
    is_whole = noise.top_k == 0 and noise.top_p == 1.0 and noise.min_p == 0.0
    return is_whole or noise.is_greedy


def _rank(
    logits: torch.Tensor, position: int, noise: SharedNoise, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if noise.is_greedy:
        tokens, ranked = torch.arange(logits.numel(), device=logits.device), logits.double()
    else:
        candidates = support(logits, noise)
        tokens = candidates.tokens
        ranked = scores(candidates, seed_of(noise), position)
    best = torch.topk(ranked, min(count, ranked.numel()))
    shares = (best.values - torch.logsumexp(ranked, 0)).exp()
    return tokens[best.indices], shares


def _to_lists(found: list[tuple[torch.Tensor, torch.Tensor]]) -> list[DraftTokens]:
    """Tokens and shares of all rows, in two copies: each copy waits for the device."""
    if not found:
        return []
    ends = list(itertools.accumulate(len(tokens) for tokens, _ in found))
    tokens = torch.cat([tokens for tokens, _ in found]).tolist()
    shares = torch.cat([shares.double() for _, shares in found]).tolist()
    starts = [0, *ends]
    pairs = zip(starts, ends, strict=False)
    return [DraftTokens(tokens[start:end], shares[start:end]) for start, end in pairs]


def _rank_by_kernel(
    logits: torch.Tensor,
    positions: Sequence[int],
    noises: Sequence[SharedNoise],
    count: int,
    kernels: Kernels,
) -> list[DraftTokens]:
    rows, vocabulary = logits.shape
    count = min(count, vocabulary)
    tokens = (ctypes.c_int64 * (rows * count))()
    shares = (ctypes.c_float * (rows * count))()
    inverse = (ctypes.c_float * rows)(*map(inverse_temperature, noises))
    is_noisy = (ctypes.c_uint8 * rows)(*(not c.is_greedy for c in noises))
    keys = (ctypes.c_uint64 * rows)(
        *(
            0 if noise.is_greedy else noise_key(seed_of(noise), position)
            for position, noise in zip(positions, noises, strict=True)
        )
    )
    kernels.library.edgecosine_rank(
        logits.data_ptr(), rows, vocabulary, inverse, is_noisy, keys, count, tokens, shares
    )
    starts = range(0, rows * count, count)
    return [DraftTokens(tokens[i : i + count], shares[i : i + count]) for i in starts]


def inverse_temperature(noise: SharedNoise) -> float:
    """The factor of the logits; 1 for greedy sampling."""
    return 1.0 if noise.is_greedy else 1.0 / noise.temperature


def seed_of(noise: SharedNoise) -> int:
    """The 64-bit seed of the noise."""
    return int.from_bytes(noise.seed, "little")
