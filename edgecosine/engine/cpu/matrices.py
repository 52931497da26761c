"""The matrices of a model that the kernels multiply: those of dense layers, and of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

DENSE: Final = frozenset({nn.Linear, Conv1D})
MIXTURES: Final = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Model types whose modules use the weights of experts and routers in products only."""
EXPERTS: Final = ("gate_up_proj", "down_proj")
"""Names of the weights of experts, which have three dimensions: expert, outputs, inputs."""
PRODUCTS: Final = frozenset({functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__})
"""Functions whose second argument is such a weight."""


def is_mixture(model: nn.Module) -> bool:
    """Whether the kernels multiply the experts of a model."""
    return getattr(getattr(model, "config", None), "model_type", None) in MIXTURES


def has_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of experts."""
    return all(isinstance(getattr(module, name, None), nn.Parameter) for name in EXPERTS)


def matrices_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, bool]]:
    """Each weight of dense layers and experts: its module, its name, and whether its last two
    dimensions are inputs and outputs, in this order. Routers are not among them."""
    is_mixed = is_mixture(model)
    for module in model.modules():
        if type(module) in DENSE:
            yield module, "weight", type(module) is Conv1D
        elif is_mixed and has_experts(module):
            for name in EXPERTS:
                yield module, name, bool(getattr(module, "is_transposed", False))
