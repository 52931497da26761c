"""Linear layers in the layout of the compiled kernels.

A weight that bfloat16 holds exactly is packed as bfloat16 whatever the model's dtype is: the sums
are float32 all the same, so the result is equal to the bit, at half the memory traffic.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgecosine.engine.native import Kernels


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
        self.register_buffer("packed", pack(narrowest(weight), kernels), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=self._out_dtype)
        rows = x.numel() // self.in_features
        self._kernels.library.edgecosine_linear(
            x.data_ptr(), x.element_size(),
            self.packed.data_ptr(), self.packed.element_size(),
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


def pack(weight: torch.Tensor, kernels: Kernels) -> torch.Tensor:
    """Row-major [outputs, inputs] in panels of output columns."""
    weight = weight.detach().contiguous()
    outputs, inputs = weight.shape
    panels = -(-outputs // kernels.panel)
    packed = torch.empty(panels, inputs, kernels.panel, dtype=weight.dtype)
    kernels.library.edgecosine_pack(
        weight.data_ptr(), packed.data_ptr(), outputs, inputs, weight.element_size()
    )
    return packed


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
