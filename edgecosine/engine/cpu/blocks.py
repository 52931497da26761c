"""Weights in blocks of 32 with a float16 scale: 8 bits as in GGUF's Q8_0, 4 bits as in Q4_1.

A weight of 4 bits is minimum + scale * nibble, which Q4_0 and the blocks of Q4_K are, too. Values
that come from such blocks are found again without loss, but for the scales of Q4_K, which float16
rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from edgecosine.engine.cpu.native_structs import BLOCK_SIZE
from edgecosine.engine.options import WeightForm

BYTES_OF_BLOCK: Final = {"int8": BLOCK_SIZE + 2, "int4": BLOCK_SIZE // 2 + 4}
"""Bytes of 32 weights and their scale, with 4 bits also a minimum."""
ROWS_AT_ONCE: Final = 512
"""Rows of a matrix that are rounded at once; a multiple of the panel."""
_DENSE: Final = {nn.Linear, Conv1D}
_MOST = 15
"""The greatest nibble."""
_NEAR = 0.02
"""Distance from a nibble, in units of the scale, that rounding a scale of Q4_K can cause."""


class Blocks(NamedTuple):
    """Blocks of a matrix [rows, inputs]; `minima` are None for 8 bits."""

    values: torch.Tensor
    """int8 [rows, blocks, 32]."""
    scales: torch.Tensor
    """float16 [rows, blocks]."""
    minima: torch.Tensor | None = None

    def weights(self, inputs: int) -> torch.Tensor:
        """The float32 weights [rows, inputs]."""
        weights = self.values.float() * self.scales.float()[..., None]
        if self.minima is not None:
            weights += self.minima.float()[..., None]
        return weights.flatten(1)[:, :inputs]


def to_blocks(values: torch.Tensor) -> Blocks:
    """Rows [rows, inputs] rounded to 8 bits. Values that come from such blocks are not changed."""
    blocks = _blocks_of(values)
    scales = (blocks.abs().amax(-1) / 127).half()
    divisors = scales.float().masked_fill(scales == 0, torch.inf)
    rounded = (blocks / divisors[..., None]).round_().clamp_(-127, 127)
    return Blocks(rounded.to(torch.int8).contiguous(), scales.contiguous())


def to_nibbles(values: torch.Tensor) -> tuple[Blocks, bool]:
    """Rows [rows, inputs] rounded to 4 bits, and whether they come from such blocks."""
    blocks = _blocks_of(values)
    lows = blocks.amin(-1)
    ranges = blocks.amax(-1) - lows
    steps = torch.full_like(ranges, _MOST)
    # The nibbles of a block of Q4_K may not reach from 0 to 15, so its step is a larger part of the
    # range.
    lost = _are_between(blocks, lows, ranges, steps)
    for count in range(_MOST - 1, 0, -1):
        if not lost.any():
            break
        found = ~_are_between(blocks[lost], lows[lost], ranges[lost], torch.tensor(float(count)))
        indices = lost.nonzero()[found]
        steps[*indices.T] = float(count)
        lost[*indices.T] = False
    minima, scales = lows.half(), (ranges / steps).half()
    divisors = scales.float().masked_fill(scales == 0, torch.inf)
    distances = (blocks - minima.float()[..., None]) / divisors[..., None]
    rounded = distances.round_().clamp_(0, _MOST).to(torch.int8)
    return Blocks(rounded.contiguous(), scales.contiguous(), minima.contiguous()), not lost.any()


def _are_between(
    blocks: torch.Tensor, lows: torch.Tensor, ranges: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """Of each block, whether a value lies between the steps from its lowest to its highest."""
    inverse = steps / ranges.masked_fill(ranges == 0, torch.inf)
    distances = (blocks - lows[..., None]) * inverse[..., None]
    return ((distances - distances.round()).abs() > _NEAR).any(-1)


def _blocks_of(values: torch.Tensor) -> torch.Tensor:
    # The last block is filled with a value of its own, for which no nibble is needed.
    filling = values[:, -1:].expand(-1, -values.shape[1] % BLOCK_SIZE)
    padded = torch.cat([values, filling], 1).float()
    return padded.view(len(values), -1, BLOCK_SIZE)


def are_nibbles(weight: torch.Tensor) -> bool:
    """Whether 4 bits hold every value of a matrix."""
    return all(to_nibbles(rows)[1] for rows in torch.split(weight, ROWS_AT_ONCE))


@torch.inference_mode()
def round_weights(
    model: nn.Module, form: WeightForm = "int8", in_8_bits: nn.Module | None = None,
    *, is_file_kept: bool = False,
) -> None:  # fmt: skip
    """Round the weights of dense linear layers to a form of blocks.

    With int4, the layer `in_8_bits` is rounded to 4 bits only if that loses nothing, and with
    `is_file_kept` all layers are. The rounded weights have memory of their own: packing drops the
    pages of a mapped file, and with them what was written there.
    """
    for module in model.modules():
        if type(module) not in _DENSE:
            continue
        parameter = module.get_parameter("weight")
        weight = parameter.t() if type(module) is Conv1D else parameter.data
        is_careful = is_file_kept or module is in_8_bits
        is_small = form == "int4" and (not is_careful or are_nibbles(weight))
        rounded = torch.empty_like(weight)
        for rows, found in zip(
            *(torch.split(w, ROWS_AT_ONCE) for w in (weight, rounded)), strict=True
        ):
            blocks = to_nibbles(rows)[0] if is_small else to_blocks(rows)
            found.copy_(blocks.weights(weight.shape[1]))
        parameter.data = rounded.t() if type(module) is Conv1D else rounded


@contextmanager
def rounding_inputs(model: nn.Module) -> Iterator[None]:
    """Context in which stock dense linear layers round their inputs as layers in blocks do."""
    layers = [module for module in model.modules() if type(module) in _DENSE]
    hooks = [layer.register_forward_pre_hook(_rounded_inputs) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rounded_inputs(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    x = inputs[0]
    padded = functional.pad(x, (0, -x.shape[-1] % BLOCK_SIZE))
    blocks = padded.view(*x.shape[:-1], -1, BLOCK_SIZE)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / scales.masked_fill(scales == 0, torch.inf)).round() * scales
    cut: torch.Tensor = rounded.flatten(-2)[..., : x.shape[-1]]
    return cut
