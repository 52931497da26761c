"""The exactness policy: bitwise where it holds, refused with the reason where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, kernels_or_reason, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.exactness import cobatching_fault, confirm, decide
from edgecosine.errors import ModelUnsupported
from tests.engine.loading.test_load import save
from tests.engine.models import MIXTURES, build

try:
    KERNELS = load_kernels()
except KernelsUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)


def _layered(family: str, **changes: object) -> tuple[ForwardModel, torch.nn.Module]:
    built = build(family, **changes)
    return SlotModel(built, slots=1, slot_size=96, threads=1, kernels=KERNELS), built


def test_bitwise_holds_for_dense_models() -> None:
    decision = decide("cpu", torch.bfloat16)
    assert confirm(decision, "auto", *_layered("gemma2")).policy == "bitwise"
    built = build("llama")
    fused = NativeLlama(built, slots=1, slot_size=96, threads=1, kernels=KERNELS)
    assert confirm(decision, "bitwise", fused, built).policy == "bitwise"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", *MIXTURES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitwise_holds_for_mixtures_of_experts(family: str, dtype: torch.dtype) -> None:
    decision = decide("cpu", dtype)
    found = confirm(decision, "bitwise", *_layered(family, dtype=dtype))
    assert found.policy == "bitwise"


def test_stock_experts_are_not_bitwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.engine.cpu.matrices.MIXTURES", ())
    decision = decide("cpu", torch.float32)
    found = confirm(decision, "auto", *_layered("qwen3_moe"))
    assert found.policy == "rounding"
    assert "Experts" in found.reason or "Router" in found.reason
    with pytest.raises(ModelUnsupported, match="exactness bitwise is not available"):
        confirm(decision, "bitwise", *_layered("qwen3_moe"))


def test_probe_detects_stock_products() -> None:
    stock = SlotModel(build("llama"), slots=1, slot_size=96, threads=1, kernels=None)
    assert cobatching_fault(stock)


def test_probe_detects_torchs_activations_at_odd_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cobatching_fault(_layered("llama", intermediate_size=101)[0]) is None
    monkeypatch.setattr("edgecosine.engine.slot_model.replace_activations", lambda _: None)
    monkeypatch.setattr("edgecosine.engine.slot_model.DeterministicFunctions", lambda: None)
    assert cobatching_fault(_layered("llama", intermediate_size=101)[0])


@pytest.mark.parametrize("activation", ["quick_gelu", "sigmoid", "mish"])
def test_modules_that_call_torchs_activations_are_bitwise(activation: str) -> None:
    assert (
        cobatching_fault(_layered("llama", intermediate_size=101, hidden_act=activation)[0]) is None
    )


@pytest.mark.parametrize("width", [16, 45])
def test_bitwise_holds_for_gpt_oss_at_odd_widths(width: int) -> None:
    assert cobatching_fault(_layered("gpt_oss", intermediate_size=width)[0]) is None


@pytest.mark.parametrize("threads", [3, 7])
def test_torch_threads_do_not_change_bits(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, _ = _layered("gemma2", intermediate_size=1536)
        assert cobatching_fault(model) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "dtype", "change"),
    [("cuda:0", torch.float32, "--device cpu"), ("cpu", torch.float16, "--dtype float32")],
)
def test_reason_for_rounding_names_the_option_to_change(
    device: str, dtype: torch.dtype, change: str
) -> None:
    decision = decide(device, dtype)
    assert decision.policy == "rounding"
    assert change in decision.reason


def test_bitwise_is_refused_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = save(build("llama"), tmp_path)
    monkeypatch.setenv("EDGECOSINE_KERNELS", "off")
    kernels_or_reason.cache_clear()
    try:
        with pytest.raises(ModelUnsupported, match="EDGECOSINE_KERNELS"):
            load_target(LoadOptions(where, threads=1, slots=1, exactness="bitwise"))
        _, loaded = load_target(LoadOptions(where, threads=1, slots=1))
    finally:
        kernels_or_reason.cache_clear()
    assert loaded.exactness == "rounding"
    assert "EDGECOSINE_KERNELS" in loaded.exactness_reason


def test_loaded_target_reports_its_policy(tmp_path: Path) -> None:
    where = save(build("llama"), tmp_path)
    found = {}
    for asked in ("auto", "bitwise", "rounding"):
        _, loaded = load_target(LoadOptions(where, threads=1, slots=1, exactness=asked))
        found[asked] = loaded.exactness
    assert found == {"auto": "bitwise", "bitwise": "bitwise", "rounding": "rounding"}
    _, drafter = load_drafter(LoadOptions(where, threads=1, slots=1, dtype="float16"))
    assert drafter.exactness == "rounding"
