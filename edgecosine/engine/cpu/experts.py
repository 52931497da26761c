"""Mixtures of experts whose products the kernels compute.

transformers' own modules route the rows and add each row's experts in ascending order; only their
weights are replaced, by objects that multiply. So a row depends on itself alone, to the bit. With
weights in blocks, routers keep their number format: they are small, and choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.matrices import EXPERTS, PRODUCTS, has_experts, is_mixture
from edgecosine.engine.cpu.packing import PackedLinear
from edgecosine.engine.options import WeightForm


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
        if func not in PRODUCTS or kwargs:
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


def pack_experts(
    model: PreTrainedModel, kernels: Kernels, threads: int, form: WeightForm = "bfloat16"
) -> None:
    """Pack the experts and routers of `model` in place, if its family is one of `MIXTURES`."""
    if not is_mixture(model):
        return

    def packed_of(weight: torch.Tensor, form: WeightForm) -> PackedLinear:
        return PackedLinear(weight, None, kernels, threads, weight.dtype, form)

    for module in list(model.modules()):
        if has_experts(module):
            for name in EXPERTS:
                weights = _taken(module, name)
                if getattr(module, "is_transposed", False):
                    weights = weights.transpose(1, 2)
                packed = [packed_of(weight, form) for weight in weights]
                module.add_module(f"packed_{name}", nn.ModuleList(packed))
                setattr(module, name, _Factors(packed))
                del weights
        elif type(module).__name__.endswith("TopKRouter"):
            weight = _taken(module, "weight")
            module.add_module("packed_weight", router := packed_of(weight, "bfloat16"))
            module.weight = _Factor(router)  # type: ignore[assignment]
    model.set_experts_implementation("eager")


def _taken(module: nn.Module, name: str) -> torch.Tensor:
    weight = module.get_parameter(name).detach()
    delattr(module, name)
    return weight
