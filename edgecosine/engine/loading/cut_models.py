"""Loads drafters that were cut from a larger model, the base, which their GGUF file names.

The file has the layers, of the Llama kind, and an output layer for a shortlist (`output.tokens`,
int32); embedding, tokenizer and settings come from the base. The file of a specialist has low-rank
changes (`*.lora_a`, `*.lora_b`) to the weights of such a drafter.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import nn
from transformers import AutoModelForCausalLM

from edgecosine.engine.loading.gguf_file import EMBEDDING, SHORTLIST, GgufModel
from edgecosine.engine.loading.gguf_header import Tensor
from edgecosine.engine.loading.gguf_weights import read_gguf_config
from edgecosine.engine.loading.sources import Source
from edgecosine.engine.shortlist import ShortlistHead
from edgecosine.errors import ModelUnavailable, ModelUnsupported

OUTPUT: Final = "output.weight"
LAYER_WEIGHTS: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's weights in GGUF files, and in transformers."""
_ARCHITECTURE: Final = "llama"
_HEAD: Final = "lm_head.linear"
_ROTATED: Final = ("q_proj", "k_proj")


def read_cut_config(source: Source) -> Any:
    """The configuration of the whole model that a drafter comes from, with fewer layers.

    Raises ModelUnsupported.
    """
    assert source.gguf is not None
    if source.base is None:
        return read_gguf_config(source.gguf)
    config = read_cut_config(source.base)
    if not source.gguf.is_adapter:
        config.num_hidden_layers = int(source.gguf.setting("block_count") or 0)
        config.tie_word_embeddings = False
    return config


def load_cut_model(source: Source, config: Any, dtype: torch.dtype) -> Any:
    """The model on the CPU, its weights dequantised and rounded to `dtype`.

    Raises ModelUnsupported for a base of another family, and ModelUnavailable where a weight is
    missing, unknown or of another shape.
    """
    model, base = source.gguf, source.base
    assert model is not None
    assert base is not None
    assert base.gguf is not None
    if model.architecture != _ARCHITECTURE or base.gguf.architecture != _ARCHITECTURE:
        raise ModelUnsupported(
            f"{model.paths[0].name}: only Llama models are supported as bases of drafters"
        )
    if model.is_adapter:
        cut = load_cut_model(base, config, torch.float32)
        _change(cut, model)
        return nn.Module.to(cut, dtype)
    return _load_cut(model, base.gguf, config, dtype)


def _load_cut(model: GgufModel, base: GgufModel, config: Any, dtype: torch.dtype) -> Any:
    weights = {tensor.name: tensor for tensor in model.tensors}
    tokens = torch.from_numpy(_numbers(_pop(model, weights, SHORTLIST)).astype(np.int64))
    with torch.device("meta"):
        cut: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="eager"
        )
        linear = nn.Linear(config.hidden_size, len(tokens), bias=False, dtype=dtype)
    if not ((tokens >= 0) & (tokens < config.vocab_size)).all():
        raise ModelUnavailable(
            f"{model.paths[0].name} names tokens that {base.paths[0].name} lacks"
        )
    cut.lm_head = ShortlistHead(linear, tokens, config.vocab_size)
    cut.model.rotary_emb = type(cut.model.rotary_emb)(config)
    state = {"model.embed_tokens.weight": _of(base, EMBEDDING)}
    state[f"{_HEAD}.weight"] = _pop(model, weights, OUTPUT)
    state["model.norm.weight"] = _pop(model, weights, "output_norm.weight")
    for index in range(config.num_hidden_layers):
        for theirs, ours in LAYER_WEIGHTS.items():
            tensor = _pop(model, weights, f"blk.{index}.{theirs}.weight")
            state[f"model.layers.{index}.{ours}.weight"] = tensor
    if weights:
        raise ModelUnavailable(f"{model.paths[0].name} has unknown weights: {min(weights)}")
    _fill(cut, state, model.paths[0].name)
    return cut.eval()


def _change(cut: Any, adapter: GgufModel) -> None:
    """Add the changes of an adapter to a model's matrices."""
    tensors = {tensor.name: tensor for tensor in adapter.tensors}
    for name, module in cut.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        stem = adapted_name(name)
        inner, outer = (
            torch.from_numpy(_numbers(_pop(adapter, tensors, f"{stem}.lora_{side}")))
            for side in "ab"
        )
        if (outer.shape[0], inner.shape[1]) != tuple(module.weight.shape):
            raise ModelUnavailable(f"{adapter.paths[0].name}: {stem} has another shape")
        change = outer @ inner
        if name.endswith(_ROTATED):
            change = rotary_halves(change, cut.config.head_dim)
        module.weight += change
    if tensors:
        raise ModelUnavailable(f"{adapter.paths[0].name} has unknown weights: {min(tensors)}")


def adapted_name(name: str) -> str:
    """GGUF's name of a matrix, by the name of its module in transformers."""
    if not name.startswith("model.layers."):
        return OUTPUT
    _, _, index, ours = name.split(".", 3)
    theirs = next(gguf for gguf, module in LAYER_WEIGHTS.items() if module == ours)
    return f"blk.{index}.{theirs}.weight"


def _fill(cut: Any, state: dict[str, Tensor], name: str) -> None:
    """Set the weights of the model, dequantised one by one."""
    for key, parameter in list(cut.named_parameters()):
        tensor = state[key]
        if tensor.shape != tuple(parameter.shape):
            raise ModelUnavailable(
                f"{name}: {tensor.name} is {tensor.shape}, not {tuple(parameter.shape)}"
            )
        values = torch.from_numpy(_numbers(tensor)).to(parameter.dtype)
        if key.removesuffix(".weight").endswith(_ROTATED):
            values = rotary_halves(values, cut.config.head_dim)
        owner, _, last = key.rpartition(".")
        cut.get_submodule(owner).register_parameter(last, nn.Parameter(values, requires_grad=False))


def rotary_halves(rows: torch.Tensor, head_size: int) -> torch.Tensor:
    """Reorder rows [outputs, inputs] from GGUF, where the two values that rotate together are
    adjacent, to the layout of transformers, where they are half a head apart."""
    pairs = rows.view(-1, head_size // 2, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape).contiguous()


def rotary_pairs(rows: torch.Tensor, head_size: int) -> torch.Tensor:
    """The inverse of `rotary_halves`."""
    halves = rows.view(-1, 2, head_size // 2, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def _pop(model: GgufModel, weights: dict[str, Tensor], name: str) -> Tensor:
    tensor = weights.pop(name, None)
    if tensor is None:
        raise ModelUnavailable(f"{model.paths[0].name} lacks the weight {name}")
    return tensor


def _of(model: GgufModel, name: str) -> Tensor:
    return _pop(model, {tensor.name: tensor for tensor in model.tensors}, name)


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    kind = GGMLQuantizationType[tensor.kind]
    dtype = {"F32": np.float32, "I32": np.int32}.get(tensor.kind, np.uint8)
    flat = np.fromfile(
        tensor.path, dtype, tensor.size // np.dtype(dtype).itemsize, offset=tensor.start
    )
    if dtype is not np.uint8:
        return flat.reshape(tensor.shape)
    rows = flat.reshape(*tensor.shape[:-1], -1)
    return dequantize(rows, kind).astype(np.float32, copy=False)
