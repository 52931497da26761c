"""An unsupported model is refused in one line, for any error of third-party code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecosine.engine.loading import load_model as loading
from edgecosine.engine.loading.device import resolve_device
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.loading.load_errors import reason_of, refusing
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import (
    ConfigError,
    EdgecosineError,
    ModelUnavailable,
    ModelUnsupported,
    OutOfMemory,
)
from tests.engine.loading.checkpoints import copy_zoo, edit
from tests.engine.models import VOCABULARY, build, save


def _settings(**changes: object) -> Callable[[Path], None]:
    return lambda where: edit(where / "config.json", **changes)


def _newer_tokenizer(where: Path) -> None:
    edit(where / "tokenizer.json", pre_tokenizer={"type": "Hyper"})


def _damaged(name: str, text: str) -> Callable[[Path], None]:
    def damage(where: Path) -> None:
        (where / name).write_text(text)

    return damage


def _without_vocabulary(where: Path) -> None:
    (where / "tokenizer.json").unlink()
    edit(where / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


CASES = {
    "tokenizer of a newer release": (_newer_tokenizer, "its tokenizer: .*untagged enum"),
    "cut tokenizer": (_damaged("tokenizer.json", '{"model": {'), "its tokenizer: "),
    "list of settings": (_damaged("tokenizer_config.json", "[]"), "its tokenizer: "),
    "number for a token": (
        lambda where: edit(where / "tokenizer_config.json", eos_token=5),
        "its tokenizer: .*eos_token",
    ),
    "no vocabulary": (_without_vocabulary, "no tokenizer file"),
    "cut settings": (_damaged("config.json", '{"model_type": '), r"config\.json: "),
    "settings that are a list": (_damaged("config.json", "[1]"), r"config\.json: "),
    "no model type": (_damaged("config.json", "{}"), r"config\.json: "),
    "unknown family": (_settings(model_type="unheard"), "unheard"),
    "code of its own": (
        _settings(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        r"config\.json: ",
    ),
    "string for a number": (_settings(hidden_size="128"), "hidden_size"),
    "null for a number": (_settings(max_position_embeddings=None), "max_position_embeddings"),
    "no heads": (_settings(num_attention_heads=0), r"config\.json: ZeroDivisionError"),
    "another vocabulary": (_settings(vocab_size=4100), r"of another shape .*\[4096, 128\]"),
    "unknown activation": (_settings(hidden_act="swoosh"), "cannot plan .*swoosh"),
    "unknown rope": (
        _settings(rope_parameters={"rope_type": "wavy", "rope_theta": 1e4}),
        "wavy",
    ),
    "rope without its factor": (
        _settings(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}),
        "factor",
    ),
    "encoder and decoder": (
        _settings(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "'t5' cannot be served: not a causal",
    ),
    "pictures": (
        _settings(model_type="llava", architectures=["LlavaForConditionalGeneration"]),
        "'llava' cannot be served",
    ),
    "cut generation settings": (_damaged("generation_config.json", "{"), "generation_config"),
    "adapter": (_damaged("adapter_config.json", "{}"), "adapter.*merge"),
}


@pytest.mark.parametrize("case", CASES)
def test_directory_that_cannot_be_served_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, reason = CASES[case]
    where = copy_zoo(tmp_path / "model")
    change(where)
    for load in (load_target, load_drafter):
        with pytest.raises((ModelUnavailable, ModelUnsupported), match=reason) as caught:
            load(LoadOptions(str(where), threads=1, slots=1))
        assert "\n" not in str(caught.value)


def test_heads_that_vary_by_layer_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, head_dim=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_kv_shared_layers=0,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY,
    )  # fmt: skip
    where = save(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(ModelUnsupported, match=r"cannot plan .*per-layer"):
        load_target(LoadOptions(where, threads=1))


@pytest.mark.parametrize("width", [688, 352])
def test_quantisation_that_the_processor_does_not_take_names_another_way(
    width: int, tmp_path: Path
) -> None:
    from bitsandbytes.functional import has_avx512bf16  # slow to import

    if not has_avx512bf16():
        pytest.skip("bitsandbytes takes every width here")
    model = build(
        "llama", hidden_size=128, num_attention_heads=2, layers=1, intermediate_size=width
    )
    where = save(model, tmp_path)
    with pytest.raises(ModelUnsupported, match=r"nf4 does not run on cpu .* omit --quantize"):
        load_drafter(LoadOptions(where, threads=1, slots=1, quantize="nf4", device="cpu"))


@pytest.mark.parametrize(
    "error", [RuntimeError("odd\nlines"), AssertionError(), BaseException("x")]
)
@pytest.mark.parametrize("stage", ["take_reference", "_runner", "confirm", "codec_of", "digest_of"])
def test_errors_of_every_stage_are_converted(
    stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, stage, fail)
    with pytest.raises(ModelUnsupported) as caught:
        load_target(LoadOptions("generalist", threads=1, slots=1))
    assert reason_of(error) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_out_of_memory_and_keyboard_interrupt_are_distinguished() -> None:
    for lack in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(OutOfMemory, match="--slots"), refusing("cannot load"):
            raise lack
    with pytest.raises(KeyboardInterrupt), refusing("cannot load"):
        raise KeyboardInterrupt
    ours = ConfigError("key", 1, "2")
    with pytest.raises(EdgecosineError) as caught, refusing("cannot load"):
        raise ours
    assert caught.value is ours


def test_reasons_are_short_and_include_the_type_where_unclear() -> None:
    assert reason_of(KeyError("swoosh")) == "KeyError: 'swoosh'"
    assert reason_of(ValueError("\n first \nsecond")) == "first"
    assert reason_of(RuntimeError()) == "RuntimeError"
    assert len(reason_of(ValueError("long" * 1000))) < 400


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "meta", "cpu:x", ""])
def test_missing_device_is_a_configuration_error(device: str) -> None:
    with pytest.raises(ConfigError, match=r"device = .* is not allowed; expected: auto, cpu"):
        load_target(LoadOptions("generalist", device=device, threads=1))


def test_existing_devices_are_accepted() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in {"cpu", "cuda:0"}


@pytest.mark.parametrize("name", [".", "./", "../fable", "../fable/.", "sub/.."])
def test_local_model_is_named_after_its_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = copy_zoo(tmp_path / "fable")
    (where / "sub").mkdir()
    monkeypatch.chdir(where)
    _, loaded = load_target(LoadOptions(name, threads=1, slots=1))
    assert loaded.name == "fable"
    assert loaded.digest == load_target(LoadOptions(str(where), threads=1, slots=1))[1].digest


def test_holes_in_the_ids_do_not_hide_the_last_ones(tmp_path: Path) -> None:
    where = copy_zoo(tmp_path / "model")
    content = json.loads((where / "tokenizer.json").read_text())
    words, merges = content["model"]["vocab"], content["model"]["merges"]
    parts = {
        part for merge in merges for part in (merge if isinstance(merge, list) else merge.split())
    }
    gone = {word for word, i in words.items() if 1500 < i < 3000 and word not in parts}
    content["model"]["vocab"] = {word: i for word, i in words.items() if word not in gone}
    content["model"]["merges"] = [
        merge
        for merge in merges
        if "".join(merge if isinstance(merge, list) else merge.split()) not in gone
    ]
    (where / "tokenizer.json").write_text(json.dumps(content))
    _, whole = load_target(LoadOptions("generalist", threads=1, slots=1))
    _, holed = load_target(LoadOptions(str(where), threads=1, slots=1))
    assert gone
    assert whole.codec is not None
    assert holed.codec is not None
    assert holed.codec.num_tokens == whole.codec.num_tokens == 4096
    vocabulary = holed.codec.vocabulary()
    assert len(vocabulary) == 4096
    assert vocabulary.count(b"") == len(gone)
    assert vocabulary[-1] == whole.codec.vocabulary()[-1]
