"""Linear layers of a tensor-parallel model in the layout of the compiled kernels.

transformers loads the shards of each rank; its plan defines how layers are split. Where inputs are
split, its all-reduce adds the sums of the ranks in an order that depends on the backend, the number
of ranks and the batch. Here they are gathered and added by rank: for a given number of ranks, the
logits of a row depend on the tokens that it sees alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations.tensor_parallel import replace_layer_number_by_wildcard

from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.packing import PackedLinear

_GATHERED = ("colwise_gather_output", "colwise_rep")
_SUMMED = ("rowwise", "rowwise_split_input", "rowwise_rep")
_HARMLESS = ("embedding_rowwise", "replicated_with_grad_allreduce", "replicate")
"""Styles whose sums over the ranks add zeros only."""


class GatheredLinear(nn.Module):
    """Each rank computes some of the outputs and gathers all of them."""

    def __init__(self, shard: PackedLinear, out_features: int, size: int) -> None:
        super().__init__()
        self.shard = shard
        self.out_features, self._size = out_features, size
        self._width = -(-out_features // size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        part = self.shard(x)
        # The last ranks may have fewer columns; a collective needs equal shapes.
        part = nn.functional.pad(part, (0, self._width - part.shape[-1]))
        return torch.cat(_gather(part, self._size), -1)[..., : self.out_features]


class SummedLinear(nn.Module):
    """Each rank multiplies some of the inputs; the sums are added by rank, in float32."""

    bias: torch.Tensor | None

    def __init__(
        self,
        shard: PackedLinear,
        bias: torch.Tensor | None,
        *,
        rank: int,
        size: int,
        in_features: int,
        is_split: bool,
        out_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.shard = shard
        self.in_features, self._size, self._out_dtype = in_features, size, out_dtype
        first = -(-in_features // size) * rank
        self._inputs = slice(None) if is_split else slice(first, first + shard.in_features)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        first, *others = _gather(self.shard(x[..., self._inputs]), self._size)
        for part in others:
            first += part
        return (first if self.bias is None else first + self.bias).to(self._out_dtype)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether all sums over ranks of this model can be computed in a fixed order."""
    known = {"colwise", *_GATHERED, *_SUMMED, *_HARMLESS}
    return set(model.tp_plan.values()) <= known


def pack_shards(model: PreTrainedModel, kernels: Kernels, threads: int) -> int:
    """Replace every linear layer of a model that `can_pack`, in place; returns their number.

    The output layer returns float32 logits, as in `pack_linear_layers`.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    count = 0
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            plan = model.tp_plan.get(replace_layer_number_by_wildcard(f"{path}.{name}".lstrip(".")))
            out_dtype = torch.float32 if child is head else child.weight.dtype
            setattr(parent, name, _packed(child, plan, out_dtype, kernels, threads))
            count += 1
    return count


def _packed(
    linear: nn.Linear, style: str | None, out_dtype: torch.dtype, kernels: Kernels, threads: int
) -> nn.Module:
    weight = _local(linear.weight)
    bias = None if linear.bias is None else _local(linear.bias)
    size = dist.get_world_size()
    if style in _SUMMED:
        return SummedLinear(
            PackedLinear(weight, None, kernels, threads, torch.float32), bias,
            rank=dist.get_rank(), size=size, in_features=linear.in_features,
            is_split=style == "rowwise", out_dtype=out_dtype,
        )  # fmt: skip
    shard = PackedLinear(weight, bias, kernels, threads, out_dtype)
    return GatheredLinear(shard, linear.out_features, size) if style in _GATHERED else shard


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gather(part: torch.Tensor, size: int) -> list[torch.Tensor]:
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part.contiguous())
    return parts
