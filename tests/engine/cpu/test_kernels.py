"""The kernels compute the same as torch, with bits that do not depend on the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, kernels_or_reason, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.cpu.packing import PackedLinear
from edgecosine.engine.loading.selftest import check_family, take_reference
from edgecosine.engine.slot_model import SlotModel
from tests.engine.models import VOCABULARY, build

try:
    KERNELS = load_kernels()
except KernelsUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SHAPES = [(16, 8), (33, 257), (768, 256), (211, 1000), (1, 3)]


def _packed(linear: nn.Linear, threads: int = 1) -> PackedLinear:
    dtype = linear.weight.dtype
    return PackedLinear(linear.weight, linear.bias, KERNELS, threads, dtype)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_equals_torch(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    x = torch.randn(2, 13, inputs, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(_packed(linear)(x), linear(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_rows_do_not_depend_on_batch_or_threads(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    x = torch.randn(70, inputs, dtype=dtype)
    whole = _packed(linear)(x)
    for threads in (1, 2, 3):
        packed = _packed(linear, threads)
        for rows in (1, 2, 3, 5, 7, 8, 13, 25):
            assert torch.equal(packed(x[-rows:]), whole[-rows:])


@pytest.mark.skipif(not KERNELS.has_pairs, reason="this processor has no bfloat16 units")
def test_pairs_multiply_inputs_of_bfloat16_and_of_float32() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(301, 40, dtype=torch.bfloat16)
    packed = PackedLinear(linear.weight, linear.bias, KERNELS, 1, torch.float32)
    for x in (torch.randn(3, 301).bfloat16(), torch.randn(3, 301)):
        exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
        torch.testing.assert_close(packed(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_bfloat16_weights_are_packed_without_loss() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(300, 40)
    wide = _packed(linear)
    linear.weight.data = linear.weight.data.bfloat16().float()
    narrow = _packed(linear)
    assert wide.packed.dtype == torch.float32
    assert narrow.packed.dtype == torch.bfloat16
    x = torch.randn(3, 300)
    torch.testing.assert_close(narrow(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("narrow", ["down_proj", "gate_proj", "up_proj", "o_proj", "lm_head"])
def test_each_matrix_is_read_in_its_own_layout(narrow: str) -> None:
    """bfloat16 may hold some matrices of a float32 model exactly and not others."""
    model = build("llama", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if narrow in name:
            parameter.data = parameter.data.bfloat16().float()
    reference = take_reference(model, 96)
    fused = NativeLlama(model, slots=1, slot_size=96, threads=1, kernels=KERNELS)
    check_family(fused, reference, "llama")


def _row(**changes: int) -> BatchRows:
    builder = RowBuilder()
    row = {"slot": 0, "start": 0, "token": 5} | changes
    builder.add_sequence(row["slot"], row["start"], [row["token"]])
    rows = builder.build()
    return replace(rows, length=torch.full_like(rows.length, changes.get("length", 1)))


BEYOND = [{"slot": 2}, {"slot": -1}, {"start": 32}, {"start": -1}, {"length": 33}, {"length": -1}]


def _paths(kv_position: int) -> BatchRows:
    builder = RowBuilder()
    builder.add_node(0, 1, 5, [1, 2])
    rows = builder.build()
    rows.path[0, 0] = kv_position
    return rows


@pytest.mark.parametrize("runs_fused", [True, False], ids=["fused", "by layers"])
def test_rows_beyond_the_cache_are_refused_and_touch_no_memory(runs_fused: bool) -> None:
    sizes = {"slots": 2, "slot_size": 32, "threads": 1}
    model = (NativeLlama if runs_fused else SlotModel)(build("llama"), **sizes, kernels=KERNELS)
    whole = model.forward(_row(), [0])
    for beyond in [*(_row(**changes) for changes in BEYOND), _paths(32), _paths(-1)]:
        with pytest.raises(IndexError):
            model.forward(beyond, [0])
    assert torch.equal(model.forward(_row(), [0]), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_most_probable_token_is_the_first_of_the_highest_logits(dtype: torch.dtype) -> None:
    model = build("llama", dtype=dtype)
    head = model.lm_head.weight.data
    head[VOCABULARY // 2 :] = head[: VOCABULARY - VOCABULARY // 2].clone()  # every logit twice
    fused = NativeLlama(model, slots=1, slot_size=64, threads=1, kernels=KERNELS)
    rows, keep = RowBuilder(), range(1, 40, 3)
    rows.add_sequence(0, 0, [token % VOCABULARY for token in range(7, 407, 10)])
    logits = fused.forward(rows.build(), keep)
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert len(set(first)) > 2
    assert fused.most_probable(rows.columns(), keep) == first
    rows.add_sequence(1, 0, [5])
    with pytest.raises(IndexError, match="beyond"):
        fused.most_probable(rows.columns(), [0])


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_token_beyond_the_embedding_is_refused(token: int) -> None:
    fused = NativeLlama(build("llama"), slots=1, slot_size=32, threads=1, kernels=KERNELS)
    with pytest.raises(IndexError, match="beyond"):
        fused.forward(_row(token=token), [0])


def test_kernels_with_another_constant_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.engine.cpu.native_structs.CHILDREN", 5)
    assert "differ in CHILDREN" in str(kernels_or_reason.__wrapped__())
