"""What to load and what came of it, free of torch: a node without a model needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecosine.engine.tokenizer import TextCodec

Quantize = Literal["none", "nf4", "int8"]
Policy = Literal["bitwise", "rounding"]
WeightForm = Literal["bfloat16", "int8"]
"""How linear layers hold their weights: as the model has them, in bfloat16 where that loses
nothing; or in blocks of 8 bits."""
Weights = WeightForm | Literal["auto"]
"""What is asked for; auto is int8 for a quantised file where the processor multiplies bytes."""
Exactness = Policy | Literal["auto"]
"""What is asked for; auto is bitwise where it can be had."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. `context` and `threads` 0 mean: as the model and the machine allow.

    `tensor_parallel` is the number of processes that share the model; `threads` are each one's.
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
    gguf: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run, and what others must know of it; memory in bytes."""

    name: str
    quantization: str
    codec: TextCodec | None
    max_context: int
    exactness: str
    """The policy that holds; `none` for what holds to none."""
    num_parameters: int
    exactness_reason: str = ""
    weights: int = 0
    """As held: packed, the embedding beside the output layer."""
    cache: int = 0
    planned: int = 0
    """Weights, cache and workspace as foreseen before the load."""
    dtype: str = ""
    """What is computed in."""
    form: str = ""
    """How linear layers hold their weights."""
    digest: str = ""
    """Of the model's files."""
    num_rows: int = 0
    """Of the embedding: token ids below can be read."""
    turns_at: int = 0
    """A sequence of more tokens has other keys and values in all its cells (`rotary.py`); 0: none
    has."""
