"""The self-test distinguishes mistakes from rounding, in deep models with outlier channels."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecosine.engine.attention import AttentionInputs, BatchRows
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.cuda.padded_model import PaddedModel
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.length_limits import refuse_chunks
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.loading.selftest import (
    ProvableModel,
    Reference,
    check_as_served,
    check_family,
    error_of,
    take_reference,
)
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.rotary import LONG
from edgecosine.engine.slot_attention import SlotAttention
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnsupported
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.models import FAMILIES, VOCABULARY, build, build_deep, prompt_of, save

Change = Callable[..., Any]
DTYPES = [pytest.param(torch.float32, marks=pytest.mark.soak), torch.bfloat16]
MISTRAL = "mistral with a window"


@functools.cache
def _kernels() -> Kernels | None:
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


@functools.cache
def _deep(family: str, layers: int, dtype: torch.dtype) -> tuple[Any, Reference]:
    model = build_deep(family, layers=layers, dtype=dtype)
    return model, take_reference(model, 256)


def _run_as(way: str, model: Any, slot_size: int = 96) -> ProvableModel:
    kernels = _kernels()
    if way == "static":
        return PaddedModel(model, slots=1, slot_size=slot_size, capture=None)
    if way == "plain":
        return SlotModel(model, slots=1, slot_size=slot_size, threads=1, kernels=None)
    if kernels is None:
        pytest.skip("no C++ compiler for the kernels")
    if way == "fused":
        return NativeLlama(model, slots=1, slot_size=slot_size, threads=1, kernels=kernels)
    return SlotModel(model, slots=1, slot_size=slot_size, threads=1, kernels=kernels)


@dataclass
class ChangedRows:
    """Changes the rows of each batch."""

    model: ProvableModel
    change: Callable[[BatchRows], BatchRows]

    @property
    def slot_size(self) -> int:
        return self.model.slot_size

    @property
    def held(self) -> tuple[int, int]:
        return self.model.held

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        return self.model.forward(self.change(rows), keep)

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        self.model.move(slot, source, target)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self.model.copy(source, target, start, end)

    def clear(self, slot: int) -> None:
        self.model.clear(slot)

    @contextmanager
    def widely(self, slot_size: int) -> Iterator[ForwardModel]:
        with self.model.widely(slot_size) as wide:
            yield ChangedRows(wide, self.change)  # type: ignore[arg-type]


def _mask_shorter(rows: BatchRows) -> BatchRows:
    """A row does not see the token before it, or itself."""
    return replace(rows, length=(rows.length - 1).clamp(min=1))


def _mask_longer(rows: BatchRows) -> BatchRows:
    """A row of a chunk sees the next one, a node of a tree sees the first."""
    return replace(rows, length=rows.length + 1)


def _earlier_in_trees(rows: BatchRows) -> BatchRows:
    return replace(rows, positions=rows.positions - (rows.path_length > 0).long())


ROWS = {
    "mask shorter": _mask_shorter,
    "mask longer": _mask_longer,
    "positions of trees": _earlier_in_trees,
}


def _other_base(model: Any) -> None:
    """The rotary embedding of half the base."""
    config, rotary = copy.deepcopy(model.config), model.model.rotary_emb
    config.rope_parameters["rope_theta"] /= 2
    model.model.rotary_emb = type(rotary)(config)


def _no_window(model: Any) -> None:
    model.config.sliding_window = None


def _swapped_groups(model: Any) -> None:
    """Query heads take the keys and values of each other's group."""
    for layer in model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            for parameter in linear.parameters():
                parameter.data = parameter.data.roll(len(parameter) // 2, 0)


MODELS = {"base": _other_base, "window": _no_window, "groups": _swapped_groups}


def _attend_by(change: Change) -> Change:
    true = SlotAttention.attend

    def attend(state: SlotAttention, module: Any, inputs: AttentionInputs) -> torch.Tensor:
        return true(state, module, change(inputs))

    return attend


ATTENTION: dict[str, Change] = {
    "groups": lambda inputs: replace(inputs, key=inputs.key.flip(1), value=inputs.value.flip(1)),
    "soft cap": lambda inputs: replace(inputs, softcap=0.0),
    "window": lambda inputs: replace(inputs, window=0),
    "sinks": lambda inputs: replace(inputs, sinks=None),
}

PLANTED = [
    *(("llama", "fused", mistake) for mistake in (*ROWS, "base", "groups")),
    *((MISTRAL, "fused", mistake) for mistake in ("window", "base", "positions of trees")),
    *(("qwen3", "layers", mistake) for mistake in (*ROWS, "base", "groups")),
    *(("gemma2", "layers", mistake) for mistake in ("soft cap", "window", "groups")),
    *(("gpt_oss", "plain", mistake) for mistake in ("sinks", "window", "mask shorter")),
    *(("gemma2", "plain", mistake) for mistake in ("soft cap", "positions of trees")),
    ("gpt2", "layers", "positions of trees"),
    ("gemma3", "static", "positions of trees"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "way", "mistake"), PLANTED)
def test_mistake_is_refused_with_both_figures(
    family: str, way: str, mistake: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = _deep(family, 30, dtype)
    model = copy.deepcopy(model)
    if (way == "fused" and mistake in MODELS) or mistake == "base":
        MODELS[mistake](model)
    elif mistake in ATTENTION:
        monkeypatch.setattr(SlotAttention, "attend", _attend_by(ATTENTION[mistake]))
    runner = _run_as(way, model)
    if mistake in ROWS:
        runner = ChangedRows(runner, ROWS[mistake])
    figures = rf"{model.config.model_type}.* error .*, where the stock model in \w+ has \d"
    with pytest.raises(ModelUnsupported, match=figures):
        check_family(runner, reference, model.config.model_type)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("family", "way"), sorted({(family, way) for family, way, _ in PLANTED}), ids=str
)
def test_models_without_mistakes_pass(family: str, way: str, dtype: torch.dtype) -> None:
    model, reference = _deep(family, 30, dtype)
    check_family(_run_as(way, copy.deepcopy(model)), reference, family)


DEEP = {"llama", "gemma2"}
"""Families that the default run tests at full depth: fused and by layers.
`test_models_without_mistakes_pass` has experts in 30 layers."""
DEPTHS = [
    *((family, 24 if family in DEEP else 4) for family in FAMILIES),
    *(pytest.param(each, 24, marks=pytest.mark.soak) for each in FAMILIES if each not in DEEP),
]


@pytest.mark.parametrize(("family", "layers"), DEPTHS)
def test_every_family_passes_deep_in_bfloat16(family: str, layers: int, tmp_path: Path) -> None:
    model, reference = _deep(family, layers, torch.bfloat16)
    for way in ("plain", "static"):
        check_family(_run_as(way, copy.deepcopy(model)), reference, family)
    where = save(model, tmp_path)
    engine, loaded = load_target(
        LoadOptions(where, threads=1, slots=1, context=96, dtype="bfloat16", device="cpu")
    )
    assert isinstance(engine, TransformerTarget)
    if _kernels() is None:
        assert loaded.exactness == "rounding"
        return
    assert loaded.exactness == "bitwise"
    assert isinstance(engine._model, NativeLlama) == can_fuse(model)
    prompt = prompt_of(20)
    [answer], _ = decode(engine, [prompt], 20, [nothing])
    drafts = random_trees(prompt + answer, VOCABULARY, seed=1)
    assert decode(engine, [prompt], 20, [drafts])[0] == [answer]


def test_float32_check_removes_rounding() -> None:
    """The check in float32 detects small mistakes for every dtype."""
    model, reference = _deep("qwen3", 30, torch.bfloat16)
    model = copy.deepcopy(model)
    _other_base(model)
    runner = _run_as("layers", model)
    check_as_served(runner, reference, "qwen3")
    with pytest.raises(ModelUnsupported, match="computed in float32"):
        check_family(runner, reference, "qwen3")


def test_model_without_wider_reference_is_compared_with_its_own_output(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("not made for it")

    model, _ = _deep("llama", 24, torch.bfloat16)
    monkeypatch.setattr("edgecosine.engine.loading.selftest.computing_in", fails)
    reference = take_reference(model, 256)
    assert "not made for it" in caplog.text
    check_family(_run_as("plain", copy.deepcopy(model)), reference, "llama")
    wrong = ChangedRows(_run_as("plain", copy.deepcopy(model)), _mask_shorter)
    with pytest.raises(ModelUnsupported, match="other logits"):
        check_family(wrong, reference, "llama")


@pytest.mark.parametrize(
    ("window", "context", "expected"), [(40, 256, 72), (40, 40, 32), (400, 4096, 32)]
)
def test_sequence_exceeds_short_windows_within_the_context(
    window: int, context: int, expected: int
) -> None:
    model = build(MISTRAL, layers=1, sliding_window=window, max_position_embeddings=4096)
    assert len(take_reference(model, context).tokens) == expected


def _far(family: str, **changes: Any) -> tuple[Any, Reference]:
    model = build(family, max_position_embeddings=512, **changes)
    return model, take_reference(model, 400)


LONG_WINDOW = 300


@pytest.mark.parametrize("way", ["plain", "static", "fused", "layers"])
def test_long_windows_are_tested_shortened(way: str) -> None:
    model, reference = _far(MISTRAL, sliding_window=LONG_WINDOW)
    check_family(_run_as(way, copy.deepcopy(model), slot_size=464), reference, "mistral")
    assert {passage.limits.get("sliding_window") for passage in reference.further} == {None, 6}
    _no_window(model)
    with pytest.raises(ModelUnsupported, match="mistral, sliding_window 6' has other"):
        check_family(_run_as(way, model, slot_size=464), reference, "mistral")


def test_windows_are_restored_after_the_test() -> None:
    model, reference = _far(MISTRAL, sliding_window=LONG_WINDOW)
    fused = _run_as("fused", copy.deepcopy(model), slot_size=464)
    assert isinstance(fused, NativeLlama)
    check_family(fused, reference, "mistral")
    assert {layer.window for layer in fused._decoder.layers[:2]} == {LONG_WINDOW}
    check_family(_run_as("plain", model, slot_size=464), reference, "mistral")
    assert model.config.sliding_window == LONG_WINDOW


def test_missing_long_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = _far("gemma2", sliding_window=LONG_WINDOW)
    monkeypatch.setattr(SlotAttention, "attend", _attend_by(ATTENTION["window"]))
    with pytest.raises(ModelUnsupported, match="sliding_window 6"):
        check_family(_run_as("plain", model, slot_size=464), reference, "gemma2")


def test_mistakes_at_the_end_of_the_context_are_refused() -> None:
    model, reference = _far("llama")
    fused = _run_as("fused", copy.deepcopy(model), slot_size=464)
    assert isinstance(fused, NativeLlama)
    fused._kept[-2][300:] = 0.0  # the rotary tables end too early
    with pytest.raises(ModelUnsupported, match="other logits"):
        check_family(fused, reference, "llama")


def test_rows_from_the_other_end_of_the_context_are_tested() -> None:
    """With frequencies chosen by the highest position of the batch, the test fails."""
    longrope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 9.0, 16.0],
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model, reference = _far("phi3", rope_parameters=longrope, original_max_position_embeddings=64)
    runner = _run_as("plain", model, slot_size=464)
    check_family(runner, reference, "phi3")
    by_sequence = model.model.rotary_emb
    by_sequence.forward = lambda x, position_ids: (
        by_sequence.long if position_ids.max() >= LONG else by_sequence.short
    )(x, position_ids % LONG)
    with pytest.raises(ModelUnsupported, match="other logits"):
        check_family(runner, reference, "phi3")


def test_position_dependent_computation_is_refused() -> None:
    """Llama 4 scales queries by their index in the batch, which differs from their position."""
    heads = {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = AutoConfig.for_model(
        "llama4_text", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64,
        intermediate_size_mlp=64, num_hidden_layers=2, num_attention_heads=4, **heads,
        num_key_value_heads=2, max_position_embeddings=512, no_rope_layers=[1, 0],
        attention_chunk_size=512, floor_scale=300, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    check_family(_run_as("plain", copy.deepcopy(model)), take_reference(model, 250), "llama4")
    reference = take_reference(model, 400)
    with pytest.raises(ModelUnsupported, match="floor_scale 6"):
        check_family(_run_as("plain", model, slot_size=464), reference, "llama4")


def test_chunked_attention_within_the_context_is_refused() -> None:
    config = AutoConfig.for_model("llama4_text", attention_chunk_size=64)
    refuse_chunks(config, 64)
    with pytest.raises(ModelUnsupported, match=r"chunks of 64 tokens.*--context 64 or less"):
        refuse_chunks(config, 65)
    refuse_chunks(build(MISTRAL).config, 4096)


def test_excluded_tokens_must_match() -> None:
    truth = torch.randn(4, 9)
    truth[:, 2] = -torch.inf
    assert error_of(truth.clone(), truth) == 0
    assert error_of(truth.clamp(min=-9), truth) == torch.inf
    assert error_of(truth + torch.arange(4.0)[:, None], truth) < 1e-6
    assert not error_of(torch.full_like(truth, torch.nan), truth) < 1
