"""Reads configuration, tokenizer and dequantised weights of a GGUF file through transformers.

The reader of the gguf package takes seconds for a vocabulary, three times a load, and does not
support split sets. During a load it is replaced by the reader of this module.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.integrations import gguf as gguf_support
from transformers.utils import logging as transformers_logging

from edgecosine.engine.loading.gguf_file import EMBEDDING, GgufModel
from edgecosine.engine.loading.gguf_header import Tensor
from edgecosine.errors import ModelUnsupported

logger = logging.getLogger(__name__)

_STATE: Final = ("ssm", "wkv", "shortconv", "kda")
"""Groups of settings of families with recurrent state."""
_PLAIN_SPLITS: Final = ("gpt-2", "smollm")
_ONE_AT_A_TIME: Final = Lock()
_NUMPY: Final = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


def read_gguf_config(model: GgufModel) -> Any:
    """The configuration; its dtype is bfloat16 where the weights have no more precision.

    Raises ModelUnsupported for families that cannot be served.
    """
    architecture = model.architecture
    prefixes = tuple(f"{architecture}.{group}." for group in _STATE)
    if any(key.startswith(prefixes) for key in model.metadata):
        raise ModelUnsupported(
            f"GGUF architecture {architecture!r} has recurrent state instead of attention, "
            "from which rejected drafts cannot be removed"
        )
    try:
        with _reading(model):
            config = AutoConfig.from_pretrained(
                model.paths[0].parent, gguf_file=model.paths[0].name
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnsupported(
            f"GGUF architecture {architecture!r} cannot be served: {_first_line(error)}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelUnsupported(
            f"GGUF architecture {architecture!r} cannot be served: not a causal language model"
        )
    _complete(config, model)
    return config


def _complete(config: Any, model: GgufModel) -> None:
    """Set values that transformers does not read from the files of every family."""
    embedding = next((t.shape[0] for t in model.tensors if t.name == EMBEDDING), None)
    # Where windows have another head size, transformers reads both from the file.
    has_two = model.setting("attention.key_length_swa") is not None
    known = {
        "head_dim": None if has_two else model.setting("attention.key_length"),
        "max_position_embeddings": model.setting("context_length"),
        "moe_intermediate_size": model.setting("expert_feed_forward_length"),
        "shared_expert_intermediate_size": model.setting("expert_shared_feed_forward_length"),
        "vocab_size": embedding,
    }
    for key, value in known.items():
        if value and hasattr(config, key):
            setattr(config, key, value)
    if not isinstance(config.eos_token_id, list):
        config.eos_token_id = list(model.end_tokens) or None
    config.dtype = torch.bfloat16 if model.is_coarse else torch.float32


def read_gguf_tokenizer(model: GgufModel) -> Any:
    """The tokenizer, with its chat template.

    Raises ModelUnsupported where the installed transformers would split texts in another way than
    in the training of the model.
    """
    first = model.paths[0]
    if hasattr(gguf_support, "GGUF_TOKENIZER_ARCHS"):
        _check_old_tokenizer(model)
        # It needs the vocabulary from gguf's own reader.
        return AutoTokenizer.from_pretrained(first.parent, gguf_file=first.name)
    with _reading(model):
        return AutoTokenizer.from_pretrained(first.parent, gguf_file=first.name)


def _check_old_tokenizer(model: GgufModel) -> None:
    """transformers 5.17 supports one way of splitting, and needs a beginning token."""
    split = model.metadata.get("tokenizer.ggml.pre")
    if split not in _PLAIN_SPLITS or "tokenizer.ggml.bos_token_id" not in model.metadata:
        raise ModelUnsupported(
            f"the tokenizer of {model.paths[0].name} ({split}) needs transformers 5.18 or newer"
        )


def load_gguf_weights(model: GgufModel, config: Any, dtype: torch.dtype) -> Any:
    """The model on the CPU, its weights dequantised and rounded to `dtype`.

    Raises ModelUnsupported where the weights of file and model do not correspond one to one.
    """
    first = model.paths[0]
    try:
        with _reading(model):
            loading: Any = AutoModelForCausalLM.from_pretrained(
                first.parent,
                gguf_file=first.name,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
                output_loading_info=True,
            )
    # Raised for shapes that differ and for number formats that gguf cannot read.
    except RuntimeError as error:
        raise ModelUnsupported(
            f"GGUF architecture {model.architecture!r} ({model.quantization}) cannot be loaded: "
            f"{_first_line(error)}"
        ) from error
    loaded, info = loading
    _check_complete(model, loaded, info)
    return loaded


def _check_complete(model: GgufModel, loaded: Any, info: Any) -> None:
    """transformers initialises missing weights at random and ignores unknown ones."""
    architecture = model.architecture
    if missing := sorted(info["missing_keys"]):
        raise ModelUnsupported(
            f"GGUF architecture {architecture!r}: not in the file are {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}"
        )
    is_tied = bool(loaded.config.get_text_config().tie_word_embeddings)
    given = sum(
        t.num_elements for t in model.weights if not (is_tied and t.name == "output.weight")
    )
    taken = sum(parameter.numel() for parameter in loaded.parameters())
    if given != taken:
        raise ModelUnsupported(
            f"GGUF architecture {architecture!r}: the file holds {given:,} numbers where "
            f"transformers' {loaded.config.model_type} has {taken:,}; its output would be wrong"
        )
    if len(model.weights) < len(model.tensors) or model.setting("rope.scaling.type") not in {
        None,
        "none",
    }:
        logger.warning(
            "rotary scaling of a GGUF file ignored, long texts will be worse than with the "
            "original checkpoint: file=%s",
            model.paths[0].name,
        )


@contextmanager
def _reading(model: GgufModel) -> Iterator[None]:
    """Context in which transformers uses the reader of this module, and a progress bar that
    `showing_progress` handles."""
    replaced = {
        (gguf, "GGUFReader"): lambda *_args, **_kwargs: _Reader(model),
        # It is computed again for every module of a model, half of the time of a load.
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (modeling_gguf_pytorch_utils, "tqdm"): transformers_logging.tqdm,
    }
    with _ONE_AT_A_TIME:
        originals = {(where, name): getattr(where, name) for where, name in replaced}
        try:
            for (where, name), value in replaced.items():
                setattr(where, name, value)
            yield
        finally:
            for (where, name), value in originals.items():
                setattr(where, name, value)


class _Reader:
    """The part of gguf's reader that transformers uses, for all files of a model.

    Vocabularies are left out; their length is a setting instead.
    """

    def __init__(self, model: GgufModel) -> None:
        values = {
            key: value
            for key, value in model.metadata.items()
            if not isinstance(value, list) and not key.startswith("tokenizer.ggml.t")
        }
        values.setdefault(f"{model.architecture}.vocab_size", model.num_tokens)
        self.fields = {key: _field(value) for key, value in values.items()}
        lists = {key: value for key, value in model.metadata.items() if isinstance(value, list)}
        self.fields |= {key: _array(value) for key, value in lists.items()}
        self.tensors = [_mapped(tensor) for tensor in model.tensors]


def _field(value: Any) -> SimpleNamespace:
    if isinstance(value, str):
        part = np.frombuffer(value.encode(), dtype=np.uint8)
        return SimpleNamespace(parts=[part], data=[0], types=[GGUFValueType.STRING])
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.INT64, float: GGUFValueType.FLOAT64}
    return SimpleNamespace(parts=[np.array([value])], data=[0], types=[kinds[type(value)]])


def _array(values: list[Any]) -> SimpleNamespace:
    parts = [_field(value) for value in values]
    return SimpleNamespace(
        parts=[part.parts[0] for part in parts],
        data=list(range(len(parts))),
        types=[GGUFValueType.ARRAY, *(part.types[0] for part in parts[:1])],
    )


def _mapped(tensor: Tensor) -> SimpleNamespace:
    kind = GGMLQuantizationType[tensor.kind]
    elements, size = GGML_QUANT_SIZES[kind]
    dtype: npt.DTypeLike = _NUMPY.get(tensor.kind, np.uint8)
    shape = tensor.shape
    if dtype is np.uint8:
        shape = (*shape[:-1], shape[-1] // elements * size)
    data = np.memmap(tensor.path, dtype=dtype, mode="r", offset=tensor.start, shape=shape)
    return SimpleNamespace(name=tensor.name, data=data.view(np.ndarray), tensor_type=kind)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
