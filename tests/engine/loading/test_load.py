"""Loading: loaded engines are exact, unsupported models are refused with the reason."""

from __future__ import annotations

from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecosine.engine.base import DraftWork, FailedWork, VerifyWork
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.loading.ballast import add_ballast
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.loading.memory import MemoryPlan
from edgecosine.engine.loading.selftest import Reference
from edgecosine.engine.loading.sources import locate
from edgecosine.engine.options import LoadOptions, Quantize
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnavailable, ModelUnsupported, OutOfMemory
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.engine.decoding import decode, nothing
from tests.engine.models import VOCABULARY, build, prompt_of, save


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(build("llama"), tmp_path_factory.mktemp("models") / "llama")


def test_loaded_target_answers_like_transformers(llama: str) -> None:
    engine, loaded = load_target(LoadOptions(llama, threads=1, slots=2))
    assert isinstance(engine, TransformerTarget)
    prompt = prompt_of(20)
    reference = build("llama").generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    [answer], _ = decode(engine, [prompt], 10, [nothing])
    assert answer == reference[0, 20:].tolist()
    assert loaded.name == "llama"
    assert loaded.codec is not None
    assert loaded.codec.encode("w7 w9") == [7, 9]


def test_loaded_target_knows_the_end_tokens_of_the_model(tmp_path: Path) -> None:
    model = build("llama")
    model.generation_config.eos_token_id = [9, 7]
    engine, loaded = load_target(LoadOptions(save(model, tmp_path), threads=1, slots=1))
    assert isinstance(engine, TransformerTarget)
    assert loaded.codec is not None
    assert loaded.codec.eos_tokens == {7, 9}
    how = Sampling(min_tokens=3, logit_bias=((7, 100.0), (9, 90.0)))
    [answer], _ = decode(engine, [prompt_of(20)], 5, [nothing], [how])
    assert not {7, 9} & {*answer[:3]}
    assert answer[3:] == [7, 7]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_tokens_beyond_the_embedding_are_excluded(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(family, vocab_size=200)
    model.generation_config.eos_token_id = [9, 200, 5000]
    engine, loaded = load_target(LoadOptions(save(model, tmp_path), threads=1, slots=1))
    assert isinstance(engine, TransformerTarget)
    assert loaded.codec is not None
    assert (loaded.codec.num_tokens, loaded.codec.num_rows, loaded.num_rows) == (200, 200, 200)
    assert loaded.codec.eos_tokens == {9}
    assert "ids=[200, 5000] tokens=200" in caplog.text
    decode(engine, [prompt_of(20)[:1]], 5, [nothing], [Sampling(min_tokens=3)])
    beyond = VerifyWork("beyond", (7, 200), 2, EMPTY_TREE, Sampling())
    [outcome] = engine.step([beyond]).outcomes
    assert isinstance(outcome, FailedWork)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_drafter_drafts(llama: str, quantize: Quantize) -> None:
    drafter, loaded = load_drafter(LoadOptions(llama, threads=1, slots=2, quantize=quantize))
    [proposal] = drafter.draft([DraftWork("a", prompt_of(20), 5, 1, SharedNoise())])
    assert 5 <= len(proposal.tokens) == len(proposal.parents)
    assert loaded.quantization == quantize


def test_quantisation_unsupported_by_the_device_is_refused(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Reference:
        raise RuntimeError("no kernel for this shape")

    monkeypatch.setattr("edgecosine.engine.loading.load_model.take_reference", fails)
    with pytest.raises(ModelUnsupported, match=r"nf4 does not run .*no kernel for this shape"):
        load_drafter(LoadOptions(llama, threads=1, slots=1, quantize="nf4"))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_is_the_default_where_it_is_lossless_and_fast(
    stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def look(model: torch.nn.Module, context: int, form: str, **how: bool) -> Reference:
        seen.append(next(model.parameters()).dtype)
        raise ModelUnsupported("seen enough")

    where = save(build("llama").to(stored), tmp_path)
    monkeypatch.setattr("edgecosine.engine.loading.load_model.take_reference", look)
    for has_pairs in (True, False):
        kernels = Kernels(
            library=CDLL(None), panel=32, has_pairs=has_pairs, instructions="portable"
        )
        monkeypatch.setattr(
            "edgecosine.engine.loading.load_plan.load_kernels", lambda found=kernels: found
        )
        with pytest.raises(ModelUnsupported, match="seen enough"):
            load_target(LoadOptions(where, threads=1, slots=1))
    assert seen == [stored, torch.float32]


def test_family_with_recurrent_state_is_refused_by_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    where = save(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(ModelUnsupported, match="mamba"):
        load_target(LoadOptions(where, threads=1, slots=1))


def test_incomplete_directory_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        locate(str(tmp_path))


def test_damaged_weights_are_refused(llama: str, tmp_path: Path) -> None:
    for file in Path(llama).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelUnavailable, match="cannot load"):
        load_target(LoadOptions(str(tmp_path), threads=1))


def test_plan_beyond_free_memory_is_refused_with_both_figures() -> None:
    plan = MemoryPlan(weights=3 << 30, cache=1 << 30, workspace=0)
    plan.check(4 << 30, "cpu")
    with pytest.raises(OutOfMemory, match=r"needs 4\.00 GiB .* has 2\.00 GiB free"):
        plan.check(2 << 30, "cpu")


def test_more_context_than_memory_is_refused_before_loading(llama: str) -> None:
    with pytest.raises(OutOfMemory, match="--slots"):
        load_target(LoadOptions(llama, threads=1, slots=1 << 20))


def test_ballast_leaves_the_function_unchanged() -> None:
    prompt = torch.tensor([prompt_of(16)])
    plain, heavy = build("llama"), build("llama")
    before = sum(p.numel() for p in heavy.parameters())
    assert add_ballast(heavy, 8) > 2 * before
    with torch.inference_mode():
        torch.testing.assert_close(heavy(prompt).logits, plain(prompt).logits)


def test_ngram_is_refused_as_target() -> None:
    with pytest.raises(ModelUnsupported, match="a target needs a model"):
        load_target(LoadOptions("ngram"))


def test_fused_runner_is_used_where_supported(llama: str) -> None:
    engine, loaded = load_target(LoadOptions(llama, threads=1, slots=1))
    assert isinstance(engine, TransformerTarget)
    kind = NativeLlama if loaded.exactness == "bitwise" else SlotModel
    assert isinstance(engine._model, kind)
