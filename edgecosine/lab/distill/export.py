"""Writes a student as a GGUF file that names its base; `engine/loading/cut_models.py` reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from edgecosine.engine.cpu.blocks import to_nibbles
from edgecosine.engine.loading.cut_models import LAYER_WEIGHTS, OUTPUT, adapted_name, rotary_pairs
from edgecosine.engine.loading.gguf_file import BASE, BASE_DIGEST, SHORTLIST
from edgecosine.lab.distill.adapters import changes


def write_drafter(
    path: Path, student: LlamaForCausalLM, shortlist: torch.Tensor, base: str, kind: str, name: str
) -> int:
    """Write `student` with its matrices in GGML's format `kind`; returns the file's size in
    bytes."""
    config: Any = student.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_string(BASE, base)
    describe_llama(writer, config)
    writer.add_tensor(SHORTLIST, shortlist.to(torch.int32).numpy())
    body = cast(Any, student.model)
    _add(writer, OUTPUT, cast(Any, student.lm_head).weight, kind)
    _add(writer, "output_norm.weight", body.norm.weight, kind)
    for index, layer in enumerate(body.layers):
        for theirs, ours in LAYER_WEIGHTS.items():
            weight = layer.get_submodule(ours).weight.detach()
            if theirs in {"attn_q", "attn_k"}:
                weight = rotary_pairs(weight, config.head_dim)
            _add(writer, f"blk.{index}.{theirs}.weight", weight, kind)
    finish(writer)
    return path.stat().st_size


def write_adapter(path: Path, student: LlamaForCausalLM, base: Path, kind: str, name: str) -> int:
    """Write the student's changes to `base`, a drafter's file in the same folder; returns the
    size of the written file in bytes."""
    config: Any = student.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_string(BASE, base.name)
    with base.open("rb") as file:
        writer.add_string(BASE_DIGEST, hashlib.file_digest(file, "sha256").hexdigest())
    for module, inner, outer in changes(student):
        is_rotated = module.endswith(("q_proj", "k_proj"))
        rows = rotary_pairs(outer, config.head_dim) if is_rotated else outer
        _add(writer, f"{adapted_name(module)}.lora_a", inner, kind)
        _add(writer, f"{adapted_name(module)}.lora_b", rows, kind)
    finish(writer)
    return path.stat().st_size


def describe_llama(writer: gguf.GGUFWriter, config: Any) -> None:
    """Add the metadata of a Llama of this configuration."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, kind: str) -> None:
    values = weight.detach().float().cpu().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    ggml = gguf.GGMLQuantizationType[kind]
    packed = _q4_1(weight) if kind == "Q4_1" else np.ascontiguousarray(quantize(values, ggml))
    writer.add_tensor(name, packed, raw_dtype=ggml)


def _q4_1(weight: torch.Tensor) -> NDArray[np.uint8]:
    """Rows as bytes of Q4_1. Unlike gguf's own rounding, this leaves values of 4 bits unchanged."""
    blocks, _ = to_nibbles(weight.detach().float().cpu())
    assert blocks.minima is not None
    scales = torch.stack([blocks.scales, blocks.minima], -1).numpy().view(np.uint8)
    halves = blocks.values.numpy().astype(np.uint8).reshape(*blocks.scales.shape, 2, -1)
    nibbles = halves[..., 0, :] | halves[..., 1, :] << 4
    return np.concatenate([scales, nibbles], -1).reshape(len(weight), -1)
