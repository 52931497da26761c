"""Threads share the products of a pass, and change no bit of it."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.blocks import round_weights
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.cpu.packing import PackedLinear
from edgecosine.engine.options import WeightForm
from tests.engine.models import VOCABULARY, build

try:
    KERNELS = load_kernels()
except KernelsUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)


def _logits(form: WeightForm, dtype: torch.dtype, threads: int) -> torch.Tensor:
    model = build("llama", dtype=dtype, hidden_size=256, intermediate_size=704)
    if form != "bfloat16":
        round_weights(model, form)
    runner = NativeLlama(model, slots=2, slot_size=96, threads=threads, kernels=KERNELS, form=form)
    found = []
    # Prompts of two sessions, and then a pass of one row.
    for first, length in ((0, 60), (60, 1)):
        rows = RowBuilder()
        for slot in range(2 if length > 1 else 1):
            tokens = [(i * 7 + slot) % VOCABULARY for i in range(first, first + length)]
            rows.add_sequence(slot, first, tokens)
        found.append(runner.forward(rows.build(), range(len(rows))))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("bfloat16", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.float32),
     ("int4", torch.float32)],
)  # fmt: skip
def test_passes_give_equal_bits_with_any_number_of_threads(
    form: WeightForm, dtype: torch.dtype
) -> None:
    alone = _logits(form, dtype, 1)
    for threads in (2, 3):
        assert torch.equal(_logits(form, dtype, threads), alone)


def test_products_at_the_same_time_do_not_disturb_each_other() -> None:
    """The second caller finds the team busy and multiplies alone."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(512, 2048), [torch.randn(9, 512) for _ in range(4)]
    packed = PackedLinear(linear.weight, linear.bias, KERNELS, 3, torch.float32)
    alone = [packed(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert all(map(torch.equal, pool.map(packed, inputs), alone))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_forked_process_multiplies_without_the_threads_of_its_parent() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 2048), torch.randn(9, 512)
    packed = PackedLinear(linear.weight, linear.bias, KERNELS, 3, torch.float32)
    alone, out = packed(x), torch.empty(9, 2048).share_memory_()
    child = os.fork()
    if child == 0:
        # No torch operation but the kernel's: torch's own threads do not survive a fork.
        KERNELS.library.edgecosine_linear(
            x.data_ptr(), 4, packed.packed.data_ptr(), int(packed._layout),
            packed.bias.data_ptr() if packed.bias is not None else None,
            out.data_ptr(), 4, 9, 2048, 512, 3,
        )  # fmt: skip
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(out, alone)
