"""How to load a model, and the description of a loaded one. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecosine.engine.tokenizer import TextCodec

Quantize = Literal["none", "nf4", "int8"]
Policy = Literal["bitwise", "rounding"]
WeightForm = Literal["bfloat16", "int8", "int4"]
"""Storage of linear layers: unchanged (as bfloat16 where that is lossless), or blocks of 8 bits, or
of 4 with 8 for matrices that need them."""
Weights = WeightForm | Literal["auto"]
"""The setting; auto is int4 or int8 for a quantised file where the processor multiplies bytes."""
KvDtype = Literal["auto", "float32", "bfloat16", "int8"]
"""Number format of the KV cache; auto is float32 where a model runs as one call on a CPU, else that
of computation."""
Exactness = Policy | Literal["auto"]
"""The setting; auto is bitwise where it is available."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. `context` and `threads` 0: as the model and the machine allow.

    `tensor_parallel` is the number of processes that share the model; each has `threads` threads.
    `gguf` names a file in the directory or hub model; empty for a checkpoint of safetensors.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantize = "none"
    threads: int = 0
    slots: int = 8
    context: int = 0
    ballast: int = 1
    tensor_parallel: int = 1
    exactness: Exactness = "auto"
    weights: Weights = "auto"
    kv_dtype: KvDtype = "auto"
    gguf: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The description of a loaded model; memory in bytes."""

    name: str
    quantization: str
    codec: TextCodec | None
    max_context: int
    exactness: str
    """The exactness policy; `none` for a drafter without a model."""
    num_parameters: int
    exactness_reason: str = ""
    weights: int = 0
    """In packed form; a tied embedding counts twice."""
    cache: int = 0
    planned: int = 0
    """Weights, cache and workspace as planned before the load."""
    dtype: str = ""
    """The number format of computation."""
    form: str = ""
    """Storage of linear layers, a `WeightForm`."""
    kv_dtype: str = ""
    """The number format of keys and values in the cache."""
    digest: str = ""
    """Identity of the model's files."""
    num_rows: int = 0
    """Rows of the embedding: token ids below are valid."""
    switches_at: int = 0
    """Sequences of more tokens have other keys and values throughout (`rotary.py`); 0: no such
    length."""
