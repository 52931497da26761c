"""Linear layers in the layout of the compiled kernels.

Weights that bfloat16 holds exactly are packed as bfloat16 for every dtype of the model: sums are
float32, so the results are equal to the bit, at half the memory traffic. Models that compute in
bfloat16 are packed in pairs where the processor has instructions for them.

Weights of 8 and 4 bits are blocks (`blocks.py`), which GGUF's files have, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgecosine.engine.cpu.blocks import (
    BYTES_OF_BLOCK,
    ROWS_AT_ONCE,
    are_nibbles,
    to_blocks,
    to_nibbles,
)
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_structs import BLOCK_SIZE, WeightLayout
from edgecosine.engine.options import WeightForm
from edgecosine.engine.process_memory import drop_pages
from edgecosine.engine.shortlist import ShortlistHead

_BLOCK = 1 << 18
"""Elements that are compared at once."""
_LARGE_PAGE, _LINE = 2 << 20, 64


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, inputs] in panels of output columns."""

    values: torch.Tensor
    layout: WeightLayout


class PackedLinear(nn.Module):
    """y = x W^T + b, where each row depends on its own input alone. Inference only."""

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,  # [outputs, inputs]
        bias: torch.Tensor | None,
        kernels: Kernels,
        threads: int,
        out_dtype: torch.dtype,
        form: WeightForm = "bfloat16",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._kernels, self._threads, self._out_dtype = kernels, threads, out_dtype
        packed = pack([weight.detach()], kernels, form)
        self._layout = packed.layout
        self.is_wide = False
        """Whether inputs are left in float32 where the layout rounds them."""
        self.register_buffer("packed", packed.values, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=self._out_dtype)
        rows = x.numel() // self.in_features
        is_wide = self.is_wide or (self._layout is WeightLayout.PAIRS and x.dtype == torch.float32)
        layout = self._layout.wide if is_wide else self._layout
        self._kernels.library.edgecosine_linear(
            x.data_ptr(), x.element_size(),
            self.packed.data_ptr(), int(layout),
            None if self.bias is None else self.bias.data_ptr(),
            out.data_ptr(), out.element_size(),
            rows, self.out_features, self.in_features, self._threads,
        )  # fmt: skip
        return out


def narrowest(weight: torch.Tensor) -> torch.Tensor:
    """The weight as bfloat16 where that is lossless, else as float32."""
    return weight.to(torch.bfloat16) if is_narrow(weight) else weight.float()


def is_narrow(weight: torch.Tensor) -> bool:
    """Whether bfloat16 holds every value of the weight."""
    if weight.dtype == torch.bfloat16:
        return True
    # In blocks: a copy of a large matrix would be a peak of memory.
    blocks = torch.split(weight, max(1, _BLOCK // weight.shape[1]))
    return all(torch.equal(block.to(torch.bfloat16).to(weight.dtype), block) for block in blocks)


class Arena:
    """One allocation for the matrices that every forward pass reads in sequence.

    Processors prefetch within a page only, and small separate allocations lie in small pages.
    """

    def __init__(self, size: int, kernels: Kernels) -> None:
        self._memory = torch.empty(size + _LARGE_PAGE, dtype=torch.uint8)
        self._begin = -self._memory.data_ptr() % _LARGE_PAGE
        self.used = 0
        """Bytes in use; untouched pages take no memory."""
        kernels.library.edgecosine_prefer_huge_pages(self._memory.data_ptr(), len(self._memory))

    def take(self, size: int) -> torch.Tensor:
        """`size` bytes, aligned to a cache line."""
        begin = self._begin + self.used
        self.used += -(-size // _LINE) * _LINE
        return self._memory[begin : begin + size]


def most_bytes(shapes: Iterable[tuple[int, int]], kernels: Kernels, form: WeightForm) -> int:
    """Upper bound of the bytes of packed matrices [outputs, inputs]."""
    most = 0
    for outputs, inputs in shapes:
        columns = -(-outputs // kernels.panel) * kernels.panel
        # In a model of 4 bits, some matrices may have 8.
        blocks = BYTES_OF_BLOCK["int8"] * -(-inputs // BLOCK_SIZE)
        width = 4 * (inputs + 1) if form == "bfloat16" else blocks
        most += columns * width + _LINE
    return most


def _own_memory(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def pack(
    weights: list[torch.Tensor],
    kernels: Kernels,
    form: WeightForm = "bfloat16",
    take: Callable[[int], torch.Tensor] = _own_memory,
) -> Packed:
    """Pack matrices [outputs, inputs] as one with all their outputs. Their dtype is that of the
    model's computations; `take` allocates memory.

    The list is emptied, so a matrix without other references is freed once it is packed.
    """
    if any(len(weight) % kernels.panel for weight in weights[:-1]):
        weights[:] = [torch.cat(weights)]
    if form != "bfloat16":
        is_small = form == "int4" and all(map(are_nibbles, weights))
        return _pack_blocks(weights, kernels, take, "int4" if is_small else "int8")
    if kernels.has_pairs and all(weight.dtype == torch.bfloat16 for weight in weights):
        layout, together, dtype = WeightLayout.PAIRS, 2, torch.bfloat16
    elif all(map(is_narrow, weights)):
        layout, together, dtype = WeightLayout.BFLOAT16, 1, torch.bfloat16
    else:
        layout, together, dtype = WeightLayout.FLOAT32, 1, torch.float32
    inputs = weights[0].shape[1]
    panels = [-(-len(weight) // kernels.panel) for weight in weights]
    steps = -(-inputs // together)
    shape = sum(panels), steps, kernels.panel * together
    values = take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
    for part in torch.split_with_sizes(values, panels):
        weight = weights.pop(0)
        rows = weight.to(dtype).contiguous()
        kernels.library.edgecosine_pack(
            rows.data_ptr(), part.data_ptr(), len(rows), inputs, int(layout)
        )
        drop_pages(weight)
        del weight, rows
    return Packed(values, layout)


def _pack_blocks(
    weights: list[torch.Tensor],
    kernels: Kernels,
    take: Callable[[int], torch.Tensor],
    form: Literal["int8", "int4"],
) -> Packed:
    steps = -(-weights[0].shape[1] // BLOCK_SIZE)
    panels = [-(-len(weight) // kernels.panel) for weight in weights]
    size = steps * kernels.panel * BYTES_OF_BLOCK[form]
    packed = take(sum(panels) * size).view(-1, size)
    for part in torch.split_with_sizes(packed, panels):
        weight = weights.pop(0)
        for begin in range(0, len(weight), ROWS_AT_ONCE):
            rows = weight[begin : begin + ROWS_AT_ONCE]
            blocks = to_nibbles(rows)[0] if form == "int4" else to_blocks(rows)
            kernels.library.edgecosine_pack_blocks(
                blocks.values.data_ptr(), blocks.scales.data_ptr(),
                None if blocks.minima is None else blocks.minima.data_ptr(),
                part[begin // kernels.panel :].data_ptr(), len(rows), steps,
            )  # fmt: skip
        drop_pages(weight)
        del weight
    return Packed(packed, WeightLayout.NIBBLES if form == "int4" else WeightLayout.BYTES)


def take_weight(module: nn.Module) -> torch.Tensor:
    """Remove the weight from a layer and return it, so that it can be freed once packed."""
    weight = module.get_parameter("weight").detach()
    module.register_parameter("weight", None)
    return weight


def pack_linear_layers(
    model: PreTrainedModel, kernels: Kernels, threads: int, form: WeightForm = "bfloat16"
) -> int:
    """Replace every dense linear layer of `model` in place; returns their number.

    The output layer returns float32 logits, so that rounding does not change their order.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(head, ShortlistHead):
        head = head.linear
    done: dict[nn.Module, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in done:
                setattr(parent, name, done[child])
                continue
            if not isinstance(child, nn.Linear | Conv1D) or type(child) not in {nn.Linear, Conv1D}:
                continue
            weight = take_weight(child)
            out_dtype = torch.float32 if child is head else weight.dtype
            if type(child) is Conv1D:
                weight = weight.t()
            done[child] = PackedLinear(weight, child.bias, kernels, threads, out_dtype, form)
            del weight
            setattr(parent, name, done[child])
    return len(done)
