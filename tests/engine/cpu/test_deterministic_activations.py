"""Activations depend on their element alone, to the bit: not on rows, width or threads."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from edgecosine.engine.cpu.deterministic_activations import (
    DeterministicActivation,
    DeterministicFunctions,
    replace_activations,
)
from tests.engine.models import build

NAMES = ("silu", "swish", "gelu", "gelu_pytorch_tanh")
GATE = "gate of a shared expert"
FUNCTIONS = {
    "torch.sigmoid": torch.sigmoid,
    "Tensor.sigmoid": torch.Tensor.sigmoid,
    "functional.sigmoid": functional.sigmoid,
    "functional.silu": functional.silu,
    "functional.gelu": functional.gelu,
    "functional.gelu tanh": functools.partial(functional.gelu, approximate="tanh"),
    "functional.softplus": functional.softplus,
    "functional.mish": functional.mish,
    "nn.GELU": nn.GELU(),
    "nn.SiLU": nn.SiLU(),
}
"""Functions of torch that modules of models call themselves."""


class _Block(nn.Module):
    """Takes the sigmoid of a gate as Qwen2-MoE does."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_expert_gate = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.sigmoid(self.shared_expert_gate(x))


def _steady(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if name in FUNCTIONS:
        return _replaced(FUNCTIONS[name])
    if name == GATE:
        block = _Block()
        replace_activations(block)
        return block
    model = nn.Sequential(ACT2FN[name])
    replace_activations(model)
    [activation] = model
    assert isinstance(activation, DeterministicActivation)
    return activation


def _replaced(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        with DeterministicFunctions():
            return function(x)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*NAMES, GATE, *FUNCTIONS])
@settings(max_examples=25)
@given(
    width=st.integers(1, 700),
    rows=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    is_strided=st.booleans(),
)
def test_activations_do_not_depend_on_the_batch(
    name: str, dtype: torch.dtype, width: int, rows: int, seed: int, is_strided: bool
) -> None:
    function = _steady(name)
    values = torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed))
    values = (values * 4).to(dtype)
    x = values[:, :width] if is_strided else values[:, :width].contiguous()
    together = function(x)
    for row in range(rows):
        assert torch.equal(function(x[row : row + 1].clone()), together[row : row + 1])


@pytest.mark.parametrize("name", [*NAMES, GATE, *FUNCTIONS])
def test_activations_equal_those_of_transformers(name: str) -> None:
    theirs = functional.sigmoid if name == GATE else FUNCTIONS.get(name) or ACT2FN[name]
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-200.0, -1e4, 200.0, 1e4])])
    torch.testing.assert_close(_steady(name)(x), theirs(x), rtol=1e-5, atol=1e-6)
    narrow = x.bfloat16()
    torch.testing.assert_close(_steady(name)(narrow), theirs(narrow), rtol=1e-2, atol=1e-2)


def test_functions_of_parameters_are_left_alone() -> None:
    with DeterministicFunctions() as functions:
        functional.softplus(nn.Parameter(torch.ones(1)))
        assert not functions.num_replaced
        functional.softplus(torch.ones(1))
        assert functions.num_replaced


@pytest.mark.parametrize("width", [16, 17, 24, 45, 101])
def test_gate_of_gpt_oss_does_not_depend_on_the_batch(width: int) -> None:
    model = build("gpt_oss", intermediate_size=width)
    [experts, *_] = [m for m in model.modules() if type(m).__name__ == "GptOssExperts"]
    stock = experts._apply_gate
    replace_activations(model)
    gates = torch.randn(19, 2 * width, generator=torch.Generator().manual_seed(width)) * 4
    with torch.inference_mode():
        together = experts._apply_gate(gates)
        torch.testing.assert_close(together, stock(gates))
        for row in range(len(gates)):
            assert torch.equal(experts._apply_gate(gates[row : row + 1]), together[row : row + 1])
