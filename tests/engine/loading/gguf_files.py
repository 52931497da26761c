"""Tiny random GGUF files of some families, in any number format, with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, HEADS, KEY_HEADS, LAYERS, FEED_FORWARD, CONTEXT = 256, 4, 2, 2, 256, 128
EXPERTS = 4
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "i n")
TOKENS = (*CONTROL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES))
END, TURN_END = 0, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPREAD = 0.09
"""Standard deviation of weights: large enough that attention matters."""


def write_gguf(
    path: Path,
    *,
    family: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    has_tokenizer: bool = True,
    tensors_per_part: int = 0,
    change: Callable[[GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write a model whose matrices are of one format; returns the (first) file.

    `change` may add metadata.
    """
    writer = GGUFWriter(path, family, split_max_tensors=tensors_per_part)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    if has_tokenizer:
        _add_tokenizer(writer)
    if family == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(FEED_FORWARD)
        writer.add_key_length(WIDTH // HEADS)
    change(writer)
    random = np.random.default_rng(1)
    for name, shape in _shapes(family).items():
        if len(shape) == 1 or "gate_inp" in name:
            values = random.normal(float("norm" in name), _SPREAD, shape).astype(np.float32)
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, _matrix(kind, shape, random), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _add_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(TURN_END)
    writer.add_chat_template(TEMPLATE)


def _shapes(family: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by name, outermost dimension first."""
    keys = WIDTH // HEADS * KEY_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH)}
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (WIDTH,),
            "attn_q.weight": (WIDTH, WIDTH),
            "attn_k.weight": (keys, WIDTH),
            "attn_v.weight": (keys, WIDTH),
            "attn_output.weight": (WIDTH, WIDTH),
            "ffn_norm.weight": (WIDTH,),
            "ffn_gate.weight": (FEED_FORWARD, WIDTH),
            "ffn_up.weight": (FEED_FORWARD, WIDTH),
            "ffn_down.weight": (WIDTH, FEED_FORWARD),
        }
        if family == "qwen2":
            block |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if family == "qwen3moe":
            for kind in ("gate", "up", "down"):
                block[f"ffn_{kind}_exps.weight"] = (EXPERTS, *block.pop(f"ffn_{kind}.weight"))
            block["ffn_gate_inp.weight"] = (EXPERTS, WIDTH)
        if family in {"qwen3", "qwen3moe"}:
            size = (WIDTH // HEADS,)
            block |= {"attn_q_norm.weight": size, "attn_k_norm.weight": size}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"output_norm.weight": (WIDTH,)}


def _matrix(
    kind: GGMLQuantizationType, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """A random matrix in the format of the file."""
    if kind.name not in _SCALES:
        return gguf.quantize(random.normal(0, _SPREAD, shape).astype(np.float32), kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    for place, scale in _SCALES[kind.name].items():
        scales = np.full(blocks.shape[:-1], _SPREAD * scale, dtype=np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


# gguf cannot write these. Blocks of random bytes with the scales at these places are as good: the
# values are around zero, with a standard deviation of about one before `_SPREAD`.
_SCALES = {
    "Q4_K": {0: 1 / 165, 2: 7.5 / 165},
    "Q5_K": {0: 1 / 330, 2: 15.5 / 330},
    "Q6_K": {208: 1 / 1350},
}
