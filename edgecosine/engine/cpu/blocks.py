"""Weights in blocks of 32 with a float16 scale: 8 bits as in GGUF's Q8_0, 4 bits as in Q4_1.

A weight of 4 bits is minimum + scale * nibble, which Q4_0 and the blocks of Q4_K are, too. Values
that come from such blocks are found again without loss, but for the scales of Q4_K, which float16
rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgecosine.engine.cpu.matrices import DENSE, PRODUCTS, matrices_of
from edgecosine.engine.cpu.native_structs import BLOCK_SIZE
from edgecosine.engine.float32_reference import eager_experts
from edgecosine.engine.options import WeightForm

BYTES_OF_BLOCK: Final = {"int8": BLOCK_SIZE + 2, "int4": BLOCK_SIZE // 2 + 4}
"""Bytes of 32 weights and their scale, with 4 bits also a minimum."""
ROWS_AT_ONCE: Final = 512
"""Rows of a matrix that are rounded at once; a multiple of the panel."""
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
    """Round the weights of dense linear layers and experts to a form of blocks.

    With int4, the layer `in_8_bits` is rounded to 4 bits only if that loses nothing, and with
    `is_file_kept` all matrices are. The rounded weights have memory of their own: packing drops the
    pages of a mapped file, and with them what was written there.
    """
    for module, name, is_transposed in matrices_of(model):
        parameter = module.get_parameter(name)
        weight = parameter.data.mT if is_transposed else parameter.data
        rounded = torch.empty_like(weight)
        is_careful = is_file_kept or module is in_8_bits
        each = (weights.view(-1, *weights.shape[-2:]) for weights in (weight, rounded))
        for matrix, found in zip(*each, strict=True):
            _round(matrix, found, form, is_careful=is_careful)
        parameter.data = rounded.mT if is_transposed else rounded


def _round(
    matrix: torch.Tensor, found: torch.Tensor, form: WeightForm, *, is_careful: bool
) -> None:
    is_small = form == "int4" and (not is_careful or are_nibbles(matrix))
    parts = (torch.split(whole, ROWS_AT_ONCE) for whole in (matrix, found))
    for rows, part in zip(*parts, strict=True):
        blocks = to_nibbles(rows)[0] if is_small else to_blocks(rows)
        part.copy_(blocks.weights(matrix.shape[1]))


@contextmanager
def rounding_inputs(model: nn.Module) -> Iterator[None]:
    """Context in which stock layers and experts round their inputs as those in blocks do."""
    layers = [module for module in model.modules() if type(module) in DENSE]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: _rounded(inputs[0])) for layer in layers
    ]
    try:
        with eager_experts(model), _RoundingExperts(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _RoundingExperts(TorchFunctionMode):
    """Rounds the inputs of products whose weights are those of an expert."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        weights = (
            module.get_parameter(name)
            for module, name, _ in matrices_of(model)
            if type(module) not in DENSE
        )
        self._storages = {weight.untyped_storage().data_ptr() for weight in weights}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`."""
        if func in PRODUCTS and args[1].untyped_storage().data_ptr() in self._storages:
            args = (_rounded(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _rounded(x: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(x, (0, -x.shape[-1] % BLOCK_SIZE))
    blocks = padded.view(*x.shape[:-1], -1, BLOCK_SIZE)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / scales.masked_fill(scales == 0, torch.inf)).round() * scales
    cut: torch.Tensor = rounded.flatten(-2)[..., : x.shape[-1]]
    return cut
