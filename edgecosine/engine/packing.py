"""Linear layers in the layout of the compiled kernels.

A weight that bfloat16 holds exactly is packed as bfloat16 whatever the model's dtype is: the sums
are float32 all the same, so the result is equal to the bit, at half the memory traffic. A model
that computes in bfloat16 is packed in pairs where the processor multiplies these.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgecosine.engine.native import Kernels


class Layout(enum.IntEnum):
    """How panels hold weights; the same numbers in kernels/packed.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    PAIRS = 2


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, inputs] in panels of output columns."""

    values: torch.Tensor
    layout: Layout


class PackedLinear(nn.Module):
    """y = x W^T + b whose every row is computed as if it were alone. Inference only."""

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,  # [outputs, inputs]
        bias: torch.Tensor | None,
        kernels: Kernels,
        threads: int,
        out_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._kernels, self._threads, self._out_dtype = kernels, threads, out_dtype
        packed = pack(weight, kernels)
        self._layout = int(packed.layout)
        self.register_buffer("packed", packed.values, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=self._out_dtype)
        rows = x.numel() // self.in_features
        self._kernels.library.edgecosine_linear(
            x.data_ptr(), x.element_size(),
            self.packed.data_ptr(), self._layout,
            None if self.bias is None else self.bias.data_ptr(),
            out.data_ptr(), out.element_size(),
            rows, self.out_features, self.in_features, self._threads,
        )  # fmt: skip
        return out


def narrowest(weight: torch.Tensor) -> torch.Tensor:
    """The weight as bfloat16 when that loses nothing."""
    if weight.dtype == torch.bfloat16:
        return weight
    narrow = weight.to(torch.bfloat16)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight.float()


def pack(weight: torch.Tensor, kernels: Kernels) -> Packed:
    """Pack [outputs, inputs]; its dtype says whether the model computes in bfloat16."""
    if weight.dtype == torch.bfloat16 and kernels.has_pairs:
        layout, together = Layout.PAIRS, 2
    else:
        weight, together = narrowest(weight), 1
        layout = Layout.BFLOAT16 if weight.dtype == torch.bfloat16 else Layout.FLOAT32
    weight = weight.detach().contiguous()
    outputs, inputs = weight.shape
    panels, steps = -(-outputs // kernels.panel), -(-inputs // together)
    values = torch.empty(panels, steps, kernels.panel * together, dtype=weight.dtype)
    kernels.library.edgecosine_pack(
        weight.data_ptr(), values.data_ptr(), outputs, inputs, int(layout)
    )
    return Packed(values, layout)


def pack_linear_layers(model: PreTrainedModel, kernels: Kernels, threads: int) -> int:
    """Replace every dense linear layer of `model` in place; returns how many.

    The output layer gives float32 logits, so that their order is not lost to rounding.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight
            elif type(child) is Conv1D:
                weight = child.weight.t()
            else:
                continue
            out_dtype = torch.float32 if child is head else weight.dtype
            packed = PackedLinear(weight, child.bias, kernels, threads, out_dtype)
            setattr(parent, name, packed)
            count += 1
    return count
