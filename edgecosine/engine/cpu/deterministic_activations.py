"""Activations whose value at an element depends on that element alone, to the bit.

torch uses other instructions for elements that do not fill a vector register, and which elements
these are depends on the number of rows, columns and threads. Where a layer's width is no multiple
of the register's, the activations of a row would depend on the rest of the batch. The functions
here consist of operators that give the same bits either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import nn
from transformers.activations import ACT2FN


def silu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(x)."""
    return x / torch.exp(-x).add_(1)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / torch.exp(-x).add_(1)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x Phi(x), by the error function."""
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(x).mul_(0.5)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """x Phi(x), approximated by tanh."""
    inner = (x * x * x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
    return torch.tanh(inner).add_(1).mul_(x).mul_(0.5)


_DETERMINISTIC: Final[dict[type[nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
    type(ACT2FN[name]): function
    for name, function in (
        ("silu", silu),
        ("swish", silu),
        ("gelu", gelu),
        ("gelu_pytorch_tanh", gelu_tanh),
    )
}


class DeterministicActivation(nn.Module):
    """One of the functions above as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # any shape -> the same
        # In float32, as torch's own functions do internally.
        return self._function(x.float()).to(x.dtype)


class GateLogits:
    """The logits of a shared expert's gate, of which Qwen2-MoE takes the sigmoid and nothing else.

    They have one column, so that the number of rows decides which of them fill a register.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def sigmoid(self) -> torch.Tensor:
        """What `torch.nn.functional.sigmoid` returns for this object."""
        return sigmoid(self._logits.float()).to(self._logits.dtype)


class DeterministicGate(nn.Module):
    """A shared expert's gate."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self._gate = gate

    def forward(self, x: torch.Tensor) -> GateLogits:  # (rows, inputs)
        return GateLogits(self._gate(x))


def replace_activations(model: nn.Module) -> None:
    """Replace the activation modules of `model` by deterministic ones, in place."""
    for parent in list(model.modules()):
        if isinstance(gate := getattr(parent, "shared_expert_gate", None), nn.Module):
            parent.shared_expert_gate = DeterministicGate(gate)
        for name, child in list(parent.named_children()):
            if function := _DETERMINISTIC.get(type(child)):
                setattr(parent, name, DeterministicActivation(function))
