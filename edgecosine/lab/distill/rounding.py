"""Rounds a trained student to 4 bits, by GPTQ (arXiv 2210.17323).

The duration of a drafter's step is the time to read its weights, so 4 bits gain more than the
acceptance that they cost. Rounding to the nearest values would cost more acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from edgecosine.engine.cpu.native_structs import BLOCK_SIZE
from edgecosine.lab.distill.conversations import Conversation
from edgecosine.lab.distill.losses import batch_of, states_of

_MOST = 15
_DAMPING = 0.01
_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84)
"""Shares of a block's range to try; the 16 values of the block cover the best one."""


@torch.no_grad()
def round_student(student: LlamaForCausalLM, text: Sequence[Conversation]) -> None:
    """Round the matrices of all linear layers so that their outputs for `text` change least."""
    for layer, moments in _second_moments(student, text).items():
        layer.weight.copy_(round_rows(layer.weight, moments))


def _second_moments(
    student: LlamaForCausalLM, text: Sequence[Conversation]
) -> dict[nn.Linear, Tensor]:
    """For each linear layer, the sum of the outer products of its inputs [inputs, inputs]."""
    found: dict[nn.Linear, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        linear, rows = cast(nn.Linear, layer), inputs[0].flatten(0, -2).float()
        found[linear] = found.get(linear, 0) + rows.T @ rows

    layers = [module for module in student.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    for one in text:
        batch = batch_of([one]).to(student.device)
        states = states_of(student, batch.tokens).flatten(0, 1)
        cast(Any, student.lm_head)(states.index_select(0, batch.indices))
    for hook in hooks:
        hook.remove()
    return found


def round_rows(weight: Tensor, moments: Tensor) -> Tensor:
    """A matrix [rows, inputs] with 16 values in each block of 32 inputs, as Q4_1 stores them.

    Later columns compensate for the error of each column, as far as the inputs' `moments`
    [inputs, inputs] allow.
    """
    rest, rounded = weight.float().clone(), torch.empty_like(weight, dtype=torch.float32)
    transfer = _transfer(moments.float())
    for start in range(0, rest.shape[1], BLOCK_SIZE):
        here = slice(start, start + BLOCK_SIZE)
        block, inner = rest[:, here].clone(), transfer[here, here]
        minimum, scale = _grid(block, moments.diagonal()[here].float())
        errors = torch.empty_like(block)
        for i in range(block.shape[1]):
            nibbles = ((block[:, i] - minimum) / scale).round().clamp(0, _MOST)
            rounded[:, start + i] = minimum + scale * nibbles
            errors[:, i] = (block[:, i] - rounded[:, start + i]) / inner[i, i]
            block -= errors[:, i, None] * inner[i]
        rest[:, here.stop :] -= errors @ transfer[here, here.stop :]
    return rounded.to(weight.dtype)


def _transfer(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the moments: how an error of one column changes
    the best values of the later ones."""
    scaled = moments / moments.diagonal().mean()
    damped = scaled + _DAMPING * torch.eye(len(scaled), device=scaled.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _grid(block: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of a block [rows, inputs], the minimum and the scale with the least weighted
    error, as numbers of float16."""
    low, high = block.amin(1), block.amax(1)
    shares = torch.tensor(_SHARES, device=block.device)[:, None]
    centres, halves = (low + high) / 2, (high - low) / 2 * shares
    minima = (centres - halves).half().float()
    scales = (2 * halves / _MOST).half().float().clamp_min(torch.finfo(torch.float16).tiny)
    nibbles = ((block - minima[..., None]) / scales[..., None]).round().clamp(0, _MOST)
    values = minima[..., None] + scales[..., None] * nibbles
    best = ((values - block).square() * weights).sum(-1).argmin(0)
    rows = torch.arange(len(block), device=block.device)
    return minima[best, rows], scales[best, rows]
