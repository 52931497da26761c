"""Activations whose value at an element depends on that element alone, to the bit.

torch uses other instructions for elements that do not fill a vector register, and which elements
these are depends on the number of rows, columns and threads. Where a layer's width is no multiple
of the register's, the activations of a row would depend on the rest of the batch. The functions
here consist of operators that give the same bits either way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN


def silu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(x)."""
    return x / torch.exp(-x).add_(1)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / torch.exp(-x).add_(1)


def softplus(x: torch.Tensor, beta: float, threshold: float) -> torch.Tensor:
    """log(1 + exp(beta x)) / beta, and x where beta x is above the threshold."""
    scaled = x * beta
    return torch.where(scaled > threshold, x, torch.exp(scaled).log1p_().div_(beta))


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x Phi(x), by the error function."""
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(x).mul_(0.5)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """x Phi(x), approximated by tanh."""
    inner = (x * x * x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
    return torch.tanh(inner).add_(1).mul_(x).mul_(0.5)


_GELU: Final = {"none": gelu, "tanh": gelu_tanh}
_DETERMINISTIC: Final[dict[type[nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
    type(ACT2FN[name]): function
    for name, function in (
        ("silu", silu),
        ("swish", silu),
        ("gelu", gelu),
        ("gelu_pytorch_tanh", gelu_tanh),
    )
}


_REPLACED: Final[Mapping[object, Callable[..., torch.Tensor]]] = {
    torch.sigmoid: sigmoid,
    torch.Tensor.sigmoid: sigmoid,
    functional.silu: lambda x, **_: silu(x),
    functional.gelu: lambda x, approximate="none": _GELU[approximate](x),
    functional.softplus: lambda x, beta=1.0, threshold=20.0: softplus(x, beta, threshold),
    functional.mish: lambda x, **_: x * torch.tanh(softplus(x, 1.0, 20.0)),
}
"""Functions of torch, and those that take their place."""


class DeterministicFunctions(TorchFunctionMode):
    """Replaces torch's functions by those above inside of a `with`.

    It slows all functions of torch down, so that modules are replaced where they are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_replaced = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The result of the function, or of its replacement."""
        # A parameter has the same shape whatever the batch.
        if func not in _REPLACED or isinstance(args[0], nn.Parameter):
            return func(*args, **(kwargs or {}))
        self.num_replaced += 1
        x, *rest = args
        return _REPLACED[func](x.float(), *rest, **(kwargs or {})).to(x.dtype)


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
        if type(parent).__name__ == "GptOssExperts":
            experts: Any = parent
            experts._apply_gate = functools.partial(_in_mode, experts._apply_gate)
        for name, child in list(parent.named_children()):
            if function := _DETERMINISTIC.get(type(child)):
                setattr(parent, name, DeterministicActivation(function))


def _in_mode(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    with DeterministicFunctions():
        return function(*args)
