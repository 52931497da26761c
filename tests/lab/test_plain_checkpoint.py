"""Drafters in the peers' formats: in both, a shortlist becomes a full output layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgecosine.lab.bench.peers.plain_checkpoint import (
    Checkpoint,
    PlainCheckpoint,
    read_checkpoint,
    write_plain_checkpoint,
)

WORDS = ["<unk>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(26)), "ab", "abc"]
CONFIG = LlamaConfig(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SHORTLIST = [2, 5, 6, 20, 29]
TEXT = torch.tensor([[3, 4, 9, 29, 5, 17, 3, 3, 28]])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A GGUF file with a tokenizer, and with a quantised embedding."""
    path = tmp_path / "target.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drafter(*, is_tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig.from_dict({**CONFIG.to_dict(), "tie_word_embeddings": is_tied})
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(TEXT).logits
    return found


def loaded(made: PlainCheckpoint) -> list[torch.nn.Module]:
    return [
        AutoModelForCausalLM.from_pretrained(made.directory, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(
            made.gguf.parent, gguf_file=made.gguf.name, dtype=torch.float32
        ),
    ]


def test_shortlist_becomes_an_output_layer_with_zero_rows(tmp_path: Path, target: Path) -> None:
    model = drafter(is_tied=False)
    tensors = dict(model.state_dict())
    tensors["lm_head.weight"] = tensors["lm_head.weight"][SHORTLIST]
    checkpoint = Checkpoint(model.config, tensors, SHORTLIST)
    made = write_plain_checkpoint(checkpoint, target, tmp_path, is_quantized=False)
    expected = torch.zeros(1, TEXT.shape[1], len(WORDS))
    expected[..., SHORTLIST] = logits(model)[..., SHORTLIST]
    for other in loaded(made):
        torch.testing.assert_close(logits(other), expected, atol=1e-4, rtol=1e-4)


def test_tied_model_survives_a_round_trip(tmp_path: Path, target: Path) -> None:
    model = drafter(is_tied=True)
    model.save_pretrained(tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    made = write_plain_checkpoint(checkpoint, target, tmp_path, is_quantized=False)
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(made.gguf).tensors}
    for other in loaded(made):
        torch.testing.assert_close(logits(other), logits(model), atol=1e-4, rtol=1e-4)


def test_tokenizer_is_that_of_the_target(tmp_path: Path, target: Path) -> None:
    model = drafter(is_tied=True)
    checkpoint = Checkpoint(model.config, model.state_dict())
    made = write_plain_checkpoint(checkpoint, target, tmp_path)
    fields, theirs = GGUFReader(made.gguf).fields, GGUFReader(target).fields
    for name in (name for name in theirs if name.startswith("tokenizer.")):
        assert fields[name].contents() == theirs[name].contents()
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    assert tokenizer.encode("abcz", add_special_tokens=False) == [30, 28]
