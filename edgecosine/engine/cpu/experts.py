"""Mixtures of experts whose products the kernels compute.

transformers' own modules route the rows and add each row's experts in ascending order; only their
weights are replaced, by objects that multiply. So a row depends on itself alone, to the bit. The
weights keep their number format: inputs are not rounded to 8 bits here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.packing import PackedLinear

FAMILIES: Final = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Model types whose modules use these weights in products only."""
_MATRICES: Final = ("gate_up_proj", "down_proj")


class _Factor:
    """A matrix as the right side of products; transformers uses it as a parameter."""

    def __init__(self, packed: PackedLinear) -> None:
        self._packed = packed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """x W^T + bias, or x W where the weights are stored that way."""
        if func not in {functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__} or kwargs:
            return NotImplemented
        x, factor, *bias = args
        y = factor._packed(x)
        return y + bias[0] if bias and bias[0] is not None else y


class _Factors:
    """The matrices of all experts, by number."""

    def __init__(self, packed: Sequence[PackedLinear]) -> None:
        self._factors = [_Factor(each) for each in packed]

    def __getitem__(self, expert: torch.Tensor) -> _Factor:
        return self._factors[int(expert)]


def pack_experts(model: PreTrainedModel, kernels: Kernels, threads: int) -> None:
    """Pack the experts and routers of `model` in place, if its family is one of `FAMILIES`."""
    if model.config.model_type not in FAMILIES:
        return
    for module in list(model.modules()):
        if all(isinstance(getattr(module, name, None), nn.Parameter) for name in _MATRICES):
            for name in _MATRICES:
                weights = _taken(module, name)
                if getattr(module, "is_transposed", False):
                    weights = weights.transpose(1, 2)
                packed = [_pack(weight, kernels, threads) for weight in weights]
                module.add_module(f"packed_{name}", nn.ModuleList(packed))
                setattr(module, name, _Factors(packed))
                del weights
        elif type(module).__name__.endswith("TopKRouter"):
            weight = _taken(module, "weight")
            module.add_module("packed_weight", packed_router := _pack(weight, kernels, threads))
            module.weight = _Factor(packed_router)  # type: ignore[assignment]
    model.set_experts_implementation("eager")


def _taken(module: nn.Module, name: str) -> torch.Tensor:
    weight = module.get_parameter(name).detach()
    delattr(module, name)
    return weight


def _pack(weight: torch.Tensor, kernels: Kernels, threads: int) -> PackedLinear:
    return PackedLinear(weight, None, kernels, threads, weight.dtype)
