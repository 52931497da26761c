"""The number formats of the KV cache: how much they round, and that kernels and torch agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgecosine import zoo
from edgecosine.config import NodeConfig
from edgecosine.engine.attention import AttentionInputs, BatchRows
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.kv_cells import from_cells, row_cells, to_cells
from edgecosine.engine.loading.load_model import load_model
from edgecosine.engine.loading.load_plan import plan_load
from edgecosine.engine.options import KvDtype, Loaded, LoadOptions
from edgecosine.engine.slot_attention import SlotAttention
from edgecosine.node.roles.identity import checkpoint_of

CELLS = [torch.float32, torch.bfloat16, torch.int8]


def _rows(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, size, generator=generator) * torch.logspace(-20, 20, count)[:, None]
    rows[1], rows[2, 3:], rows[3] = 0.0, 0.0, 1e-35
    return rows


@pytest.mark.parametrize("size", [16, 33, 64])
def test_integers_differ_by_half_a_step_at_most(size: int) -> None:
    rows = _rows(40, size)
    cells = to_cells(rows, torch.int8)
    assert cells.shape == (40, row_cells(size, torch.int8))
    step = rows.abs().amax(1, keepdim=True) / 127
    assert ((from_cells(cells, torch.float32) - rows).abs() <= 0.501 * step + 1e-30).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_becomes_nan(wrong: float) -> None:
    rows = _rows(5, 16)
    rows[2, 7] = wrong
    found = from_cells(to_cells(rows, torch.int8), torch.float32)
    assert found[2].isnan().all()
    assert found[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("cells", CELLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [16, 40, 64])
def test_kernels_store_and_read_as_torch_does(
    cells: torch.dtype, dtype: torch.dtype, size: int
) -> None:
    try:
        kernels = load_kernels()
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    count, module = 40, torch.nn.Module()
    made = torch.randn(3, 2, count, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    made[1, 0, 5, 2] = torch.nan  # of a key that no compared row sees
    inputs = AttentionInputs(made[0][None], made[1][None], made[2][None], size**-0.5)
    found = []
    for runner in (kernels, None):
        state = SlotAttention(slots=2, slot_size=64, threads=1, kernels=runner, cells=cells)
        state.rows = _tree_and_chain(count)
        out = state.attend(module, inputs)
        found.append((out, state.layers[module]))
    (ours, stored), (plain, expected) = found
    for one, other in ((stored.keys, expected.keys), (stored.values, expected.values)):
        if cells == torch.int8:
            assert torch.equal(one, other)
        else:
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    seen = [*range(5), *range(20, count)]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours[0, seen], plain[0, seen], atol=tolerance, rtol=tolerance)


def _tree_and_chain(count: int) -> BatchRows:
    builder = RowBuilder()
    builder.add_sequence(0, 0, range(20))
    builder.add_sequence(1, 0, range(count - 22))
    builder.add_node(1, 17, 1, [40])
    builder.add_node(1, 17, 2, [40, 45])
    return builder.build()


@pytest.mark.parametrize(
    ("kv_dtype", "row_bytes"), [("float32", 4 * 64), ("bfloat16", 2 * 64), ("int8", 64 + 4)]
)
def test_a_load_plans_and_reports_its_cache(kv_dtype: KvDtype, row_bytes: int) -> None:
    options = LoadOptions(
        zoo.TARGET, device="cpu", threads=1, slots=2, context=100, kv_dtype=kv_dtype
    )
    plan = plan_load(options)
    _, loaded, slot_size = load_model(options)
    assert loaded.kv_dtype == kv_dtype
    text = plan.config
    rows = 2 * text.num_hidden_layers * text.num_key_value_heads * 2 * slot_size
    assert loaded.cache == plan.memory.cache == rows * row_bytes


def test_targets_with_other_caches_are_not_taken_for_equal() -> None:
    engine = LoadOptions("model")
    config = NodeConfig("drafter", "d", engine, broker=None)
    loaded = Loaded("model", "none", None, 100, "bitwise", 1, kv_dtype="float32")
    narrow = replace(loaded, kv_dtype="int8")
    assert checkpoint_of(config, loaded) != checkpoint_of(config, narrow)
