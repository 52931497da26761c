"""From a name to an engine: what loads runs exactly, what cannot is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from edgecosine.engine.ballast import add_ballast
from edgecosine.engine.base import DraftWork
from edgecosine.engine.fused import FusedModel
from edgecosine.engine.loading import load_drafter, load_target, locate
from edgecosine.engine.memory import MemoryPlan
from edgecosine.engine.model import SlotModel
from edgecosine.engine.options import LoadOptions, Quantize
from edgecosine.engine.target import TransformerTarget
from edgecosine.errors import ModelUnavailable, ModelUnsupported, OutOfMemory
from edgecosine.protocol.messages import Coupling
from tests.engine.decoding import decode, nothing
from tests.engine.models import VOCABULARY, build, prompt_of


def save(model: torch.nn.Module, path: Path) -> str:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(path)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(build("llama"), tmp_path_factory.mktemp("models") / "llama")


def test_loaded_target_answers_as_the_model_itself(llama: str) -> None:
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


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_drafter_drafts(llama: str, quantize: Quantize) -> None:
    drafter, loaded = load_drafter(LoadOptions(llama, threads=1, slots=2, quantize=quantize))
    [proposal] = drafter.draft([DraftWork("a", prompt_of(20), 5, 1, Coupling())])
    assert len(proposal.tokens) == 5
    assert loaded.quantization == quantize


def test_family_with_recurrent_state_is_refused_by_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    where = save(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(ModelUnsupported, match="mamba"):
        load_target(LoadOptions(where, threads=1, slots=1))


def test_directory_without_model_or_weights_says_what_is_missing(tmp_path: Path) -> None:
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


def test_plan_that_does_not_fit_is_refused_with_both_figures() -> None:
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


def test_ngram_only_drafts() -> None:
    with pytest.raises(ModelUnsupported, match="only drafts"):
        load_target(LoadOptions("ngram"))


def test_fast_path_is_taken_where_it_can(llama: str) -> None:
    engine, loaded = load_target(LoadOptions(llama, threads=1, slots=1))
    assert isinstance(engine, TransformerTarget)
    kind = FusedModel if loaded.exactness == "bitwise" else SlotModel
    assert isinstance(engine._model, kind)
