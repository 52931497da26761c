"""Writes a drafter for other runtimes: a plain Llama checkpoint with an output row for every token.

The output layer of a packaged drafter may cover only a shortlist of frequent tokens. In the plain
checkpoint the rows of all other tokens are zero: their logit is 0, below the best token's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgecosine.engine.loading.cut_models import (
    LAYER_WEIGHTS,
    load_cut_model,
    read_cut_config,
    rotary_pairs,
)
from edgecosine.engine.loading.gguf_weights import load_gguf_weights, read_gguf_config
from edgecosine.engine.loading.sources import Source, locate
from edgecosine.errors import ModelUnsupported
from edgecosine.lab.distill.export import describe_llama, finish

_HEAD: Final = "lm_head.weight"
_OUTPUT: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"
_OUTER: Final = {
    "model.embed_tokens.weight": _EMBEDDING, "model.norm.weight": "output_norm.weight",
    _HEAD: _OUTPUT,
}  # fmt: skip
_INNER: Final = {ours: theirs for theirs, ours in LAYER_WEIGHTS.items()}
_FLOAT32: Final = GGMLQuantizationType.F32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Llama model: tensors of any float type, by their names in transformers.

    `shortlist` has the token of each row of `lm_head.weight`; None when the layer covers all
    tokens, or is tied to the embedding and omitted.
    """

    config: LlamaConfig
    tensors: Mapping[str, torch.Tensor]
    shortlist: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class PlainCheckpoint:
    """The same model for transformers (a directory) and for llama.cpp (a file)."""

    directory: Path
    gguf: Path


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a directory in transformers' format, of a plain GGUF file or of a drafter's
    GGUF file, in float32.

    Raises ModelUnsupported when it is not a Llama model, and ModelUnavailable when it is damaged.
    """
    if path.is_dir():
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    elif (source := locate(str(path))).base is not None:
        return _read_cut(source)
    else:
        assert source.gguf is not None, "a file is one"
        model = load_gguf_weights(source.gguf, read_gguf_config(source.gguf), torch.float32)
    if not isinstance(model, LlamaForCausalLM):
        raise ModelUnsupported(f"{path} is not a Llama model; peers need one as drafter")
    return Checkpoint(model.config, model.state_dict())


def _read_cut(source: Source) -> Checkpoint:
    config = read_cut_config(source)
    model = load_cut_model(source, config, torch.float32)
    tensors = dict(model.model.named_parameters(prefix="model"))
    return Checkpoint(
        config, {**tensors, _HEAD: model.lm_head.linear.weight}, model.lm_head.tokens.tolist()
    )


def write_plain_checkpoint(
    drafter: Checkpoint, target: Path, directory: Path, *, is_quantized: bool = True
) -> PlainCheckpoint:
    """Write the drafter below `directory`, with the tokenizer of the target's GGUF file.

    Returns the paths. In the GGUF file each tensor has the type of the target's tensor; without
    `is_quantized` it is float32.
    """
    config, tensors = _plain(drafter)
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    made = PlainCheckpoint(directory / "plain", directory / "plain.gguf")
    model.to(torch.bfloat16 if is_quantized else torch.float32).save_pretrained(made.directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(target.parent, gguf_file=target.name)
    tokenizer.save_pretrained(made.directory)
    _write_gguf(made.gguf, config, tensors, GGUFReader(target), is_quantized=is_quantized)
    return made


def _plain(drafter: Checkpoint) -> tuple[LlamaConfig, dict[str, torch.Tensor]]:
    """The configuration and float32 tensors without a shortlist."""
    tensors = {name: tensor.float() for name, tensor in drafter.tensors.items()}
    fields = drafter.config.to_dict()
    # The configuration of a GGUF file has its quantisation, which prevents saving floats.
    fields.pop("quantization_config", None)
    config = LlamaConfig.from_dict(fields)
    if drafter.shortlist is not None:
        head = torch.zeros(config.vocab_size, config.hidden_size)
        head[torch.tensor(drafter.shortlist)] = tensors[_HEAD]
        tensors[_HEAD] = head
        config.tie_word_embeddings = False
    elif config.tie_word_embeddings:
        tensors.pop(_HEAD, None)
    return config, tensors


def _write_gguf(
    path: Path, config: LlamaConfig, tensors: Mapping[str, torch.Tensor], target: GGUFReader, *,
    is_quantized: bool,
) -> None:  # fmt: skip
    writer = GGUFWriter(path, "llama")
    writer.add_name("drafter")
    describe_llama(writer, config)
    writer.add_vocab_size(config.vocab_size)
    for name, field in target.fields.items():
        if name.startswith("tokenizer."):
            _copy(writer, name, field)
    types = {t.name: t.tensor_type for t in target.tensors} if is_quantized else {}
    types.setdefault(_OUTPUT, types.get(_EMBEDDING, _FLOAT32))
    for name, tensor in tensors.items():
        gguf_name, values = _gguf_tensor(name, tensor, config)
        # Layers take the types of the target's layer 0, since the numbers of layers differ.
        kind = types.get(_of_layer_0(gguf_name), _FLOAT32)
        writer.add_tensor(gguf_name, quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


def _copy(writer: GGUFWriter, name: str, field: Any) -> None:
    kind, *inner = field.types
    values = field.contents()
    if kind == GGUFValueType.ARRAY:
        writer.add_key_value(name, values, kind, sub_type=inner[-1])
    else:
        writer.add_key_value(name, values, kind)


def _gguf_tensor(
    name: str, tensor: torch.Tensor, config: Any
) -> tuple[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """A tensor's name in GGUF, and its values in float32."""
    if name in _OUTER:
        return _OUTER[name], tensor.numpy()
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    if part in {"self_attn.q_proj", "self_attn.k_proj"}:
        tensor = rotary_pairs(tensor, config.head_dim)
    return f"blk.{layer}.{_INNER[part]}.weight", tensor.numpy()


def _of_layer_0(name: str) -> str:
    parts = name.split(".")
    return ".".join((parts[0], "0", *parts[2:])) if parts[0] == "blk" else name
