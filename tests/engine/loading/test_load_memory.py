"""The peak memory of a load is close to the plan and to the final use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgecosine import zoo
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.cpu.packing import pack, take_weight
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.process_memory import drop_pages
from edgecosine.engine.slot_model import SlotModel
from edgecosine.lab.bench.memory_use import measure_memory
from tests.engine.models import build

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory come from /proc")
def test_load_stays_within_the_planned_memory() -> None:
    options = LoadOptions(
        zoo.TARGET, threads=1, ballast=zoo.BALLAST, slots=2, context=512, dtype="bfloat16",
        device="cpu",
    )  # fmt: skip
    use = measure_memory(options, rounds=2)
    assert use.weights > 180 * MIB
    assert use.over_ideal <= 1.25
    assert 0.7 * use.planned <= use.peak <= use.planned


def test_packing_leaves_no_second_copy() -> None:
    try:
        kernels = load_kernels()
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    for fuse in (True, False):
        model = build("llama", dtype=torch.bfloat16)
        assert can_fuse(model)
        sizes = sum(p.numel() * p.element_size() for p in model.parameters())
        if fuse:
            runner: NativeLlama | SlotModel = NativeLlama(
                model, slots=1, slot_size=64, threads=1, kernels=kernels, takes_weights=True
            )
            left = sum(p.numel() for p in model.parameters() if p.dim() > 1)
            assert left == 0
        else:
            runner = SlotModel(model, slots=1, slot_size=64, threads=1, kernels=kernels)
            left = sum(
                p.numel() for m in model.modules() if type(m) is nn.Linear for p in m.parameters()
            )
            assert left == 0
        weights, _ = runner.held
        assert weights <= 1.2 * sizes


def test_matrices_packed_together_are_the_joined_matrix() -> None:
    try:
        kernels = load_kernels()
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    for sizes in ((64, 32, 32), (64, 7, 9), (33, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            parts = [torch.randn(size, 48, dtype=dtype) for size in sizes]
            parts[0] = parts[0].bfloat16().to(dtype)
            expected = pack([torch.cat(parts)], kernels)
            found = pack(list(parts), kernels)
            assert found.layout == expected.layout
            assert torch.equal(found.values, expected.values)


def test_tied_weight_stays_with_the_other_layer() -> None:
    embedding, head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
    head.weight = embedding.weight
    assert torch.equal(take_weight(head), embedding.weight)
    assert head.weight is None


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted in /proc")
def test_dropped_pages_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    stored = torch.randn(300, 4096)
    save_file({"weight": stored, "other": stored + 1}, path)
    mapped, heap = load_file(path), stored.clone()
    before = _mapped_memory()
    assert torch.equal(mapped["weight"], stored)
    assert _mapped_memory() > before + 4 * MIB
    drop_pages(mapped["weight"])
    assert _mapped_memory() < before + 1 * MIB
    drop_pages(heap)
    assert torch.equal(mapped["weight"], stored)
    assert torch.equal(mapped["other"], stored + 1)
    assert torch.equal(heap, stored)


def _mapped_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssFile"))
