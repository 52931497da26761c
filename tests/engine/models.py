"""Tiny random models of many families, whose logits react to every wrong mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from edgecosine.engine.shortlist import ShortlistHead

VOCABULARY = 211

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_HEADS = {"head_dim": 16}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", _HEADS),
    "mistral with a window": ("mistral", {"sliding_window": 8}),
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 16, **_HEADS}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, **_LAYERS, **_HEADS}),
    "phi3": ("phi3", {"sliding_window": None}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, **_HEADS},
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            **_LAYERS,
            **_HEADS,
        },
    ),
}

MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, **_HEADS}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
        },
    ),
}
"""Further mixtures of experts, in which only the experts differ from the families above."""


def build(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    **changes: Any,
) -> PreTrainedModel:
    """A random model of a family, with weights large enough that attention matters."""
    name, extra = (FAMILIES | MIXTURES)[family]
    settings = {**_BASE, **extra, "num_hidden_layers": layers, **changes}
    if kinds := settings.get("layer_types"):
        settings["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    if name == "gpt2":
        settings["n_layer"] = layers
        settings = {k: v for k, v in settings.items() if k != "hidden_size"}
        for key in ("num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            settings.pop(key)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **settings), attn_implementation="eager", dtype=dtype
    )
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.12)
    return model.eval()


def build_deep(family: str, *, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    """A random model with large rounding errors like trained ones: many layers, and a few channels
    that are tens of times larger than the rest wherever they are written, and scaled down where
    they are read."""
    model = build(family, layers=layers)
    outliers = [3, 17, 40]
    model.get_input_embeddings().weight.data[:, outliers] *= 30
    for name, weight in model.named_parameters():
        *_, layer, kind = name.split(".")
        if (
            kind == "weight"
            and weight.dim() == 2
            and layer in {"down_proj", "fc2", "dense_4h_to_h"}
        ):
            weight.data[outliers] *= 20
        elif ".mlp.c_proj.weight" in name:
            weight.data[:, outliers] *= 20
        elif kind == "weight" and weight.shape == (64,):
            weight.data[outliers] = -0.9 if "gemma" in family else 0.1
        elif family == "gemma2" and layer in {"q_proj", "k_proj"}:
            weight.data *= 3  # scores that the soft cap changes
    return model.to(dtype)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def save(model: torch.nn.Module, path: Path) -> str:
    """A model's directory, with a tokenizer of words w0, w1, ..."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(path)
    model.save_pretrained(path)
    return str(path)


def cut_head(model: PreTrainedModel, shortlist: torch.Tensor) -> None:
    """Reduce the output layer to the rows of a shortlist."""
    inner: Any = model
    linear = torch.nn.Linear(inner.config.hidden_size, len(shortlist), bias=False)
    linear.weight = torch.nn.Parameter(inner.lm_head.weight.detach()[shortlist].clone())
    inner.lm_head = ShortlistHead(linear.to(model.dtype), shortlist, inner.config.vocab_size)
