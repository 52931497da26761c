"""The tensors of checkpoint and model correspond one to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import EngineError, ModelUnavailable, ModelUnsupported
from tests.engine.loading.checkpoints import Tensors, change_tensors, edit
from tests.engine.models import build, save

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(save(build("llama", layers=2), tmp_path / "llama"))


def _load(where: Path) -> None:
    load_target(LoadOptions(str(where), threads=1, slots=1))


def _without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def _with(key: str, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key: torch.ones(2, 2).to(dtype)}


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (_without(DOWN), ModelUnavailable, f"lacks 1 tensor: {DOWN};"),
        (_without("model.norm.weight"), ModelUnavailable, "lacks 1 tensor: model.norm.weight"),
        (_without("lm_head.weight"), ModelUnavailable, "lm_head.weight; set tie_word_embeddings"),
        (
            lambda tensors: {f"base.{key}": tensor for key, tensor in tensors.items()},
            ModelUnavailable,
            r"lacks 21 tensors: lm_head.weight, .*, …; no place for 21 tensors: base.lm_head",
        ),
        (
            lambda tensors: tensors | {DOWN: tensors[DOWN][:, :-1].contiguous()},
            ModelUnavailable,
            rf"of another shape 1 tensor: {DOWN} \(\[64, 127\], not \[64, 128\]\)",
        ),
        (
            _with(f"{DOWN}_scale_inv"),
            ModelUnsupported,
            "no place for 1 tensor: .*down_proj.weight_scale_inv, scales of an unknown",
        ),
        (_with("model.layers.0.self_attn.k_scale"), ModelUnsupported, "k_scale, scales of"),
        (_with("model.layers.2.mlp.up_proj.weight"), ModelUnsupported, "no place for .*layers.2"),
        (_with("model.layers.0.mlp.down_proj.bias"), ModelUnsupported, "no place for .*bias"),
        (
            lambda tensors: tensors | {DOWN: tensors[DOWN].to(torch.float8_e4m3fn)},
            ModelUnsupported,
            rf"{DOWN} \(F8_E4M3\), and its config.json does not name the quantisation",
        ),
        (
            lambda tensors: tensors | {DOWN: (tensors[DOWN] * 100).to(torch.int8)},
            ModelUnsupported,
            rf"{DOWN} \(I8\)",
        ),
        (_with("norm.weight"), ModelUnavailable, "has duplicates of 1 tensor: norm.weight"),
    ],
)
def test_checkpoint_that_does_not_match_its_config_is_refused(
    llama: Path, change: Callable[[Tensors], Tensors], kind: type[EngineError], reason: str
) -> None:
    change_tensors(llama, change)
    with pytest.raises(kind, match=reason):
        _load(llama)


def test_known_harmless_tensors_are_accepted(llama: Path) -> None:
    for key, dtype in (
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.float32),
        ("model.rotary_emb.inv_freq", torch.float32),
        ("model.layers.0.attn.masked_bias", torch.float32),
        ("model.layers.0.attn.bias", torch.uint8),
        ("mtp.layers.0.mlp.up_proj.weight", torch.float32),
        ("model.mtp_layers.0.norm.weight", torch.float32),
        ("model.position_ids", torch.int64),
        ("model.layers.0.mlp.down_proj._extra_state", torch.uint8),
        ("model.vision_tower.patch.weight", torch.float32),
        ("model.layers.2.eh_proj.weight", torch.float32),
    ):
        change_tensors(llama, _with(key, dtype))
    edit(llama / "config.json", num_nextn_predict_layers=1)
    _load(llama)


def test_tied_output_layer_may_be_missing_or_duplicated(tmp_path: Path) -> None:
    where = Path(save(build("llama", layers=2, tie_word_embeddings=True), tmp_path))
    _load(where)
    change_tensors(
        where,
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0},
    )
    _load(where)


def test_layers_beyond_the_config_are_refused(llama: Path) -> None:
    edit(llama / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelUnsupported, match=r"no place for 9 tensors: model.layers.1"):
        _load(llama)


def test_tensor_of_two_files_is_refused(llama: Path) -> None:
    weights = llama / "model.safetensors"
    weights.rename(llama / "one.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, llama / "two.safetensors")
    names = '{"a": "one.safetensors", "b": "two.safetensors"}'
    (llama / "model.safetensors.index.json").write_text(
        f'{{"metadata": {{}}, "weight_map": {names}}}'
    )
    with pytest.raises(ModelUnavailable, match=r"has duplicates of 1 tensor: model.norm.weight"):
        _load(llama)


def test_unknown_quantisation_is_refused(llama: Path) -> None:
    edit(llama / "config.json", quantization_config={"quant_method": "wonder"})
    with pytest.raises(ModelUnsupported, match=r"does not support .*wonder"):
        _load(llama)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("weight.absmax", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        (
            "weight.nested_absmax",
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
            },
        ),
        ("SCB", {"load_in_8bit": True}),
    ],
)
def test_quantised_checkpoint_needs_all_its_scales(
    part: str, settings: dict[str, object], tmp_path: Path
) -> None:
    plain = save(build("llama", hidden_size=128, layers=1), tmp_path / "plain")
    quantization = BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantization)
    where = Path(save(model, tmp_path / "quantised"))
    load_drafter(LoadOptions(str(where), threads=1, slots=1))
    lacking = f"model.layers.0.mlp.down_proj.{part}"
    change_tensors(where, _without(lacking))
    with pytest.raises(ModelUnavailable, match=f"lacks parts .* 1 tensor: {lacking}"):
        load_drafter(LoadOptions(str(where), threads=1, slots=1))
