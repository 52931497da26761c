"""Computes the memory of weights, cache and workspace before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edgecosine.engine.cpu.blocks import BYTES_OF_BLOCK
from edgecosine.engine.cpu.native_structs import BLOCK_SIZE
from edgecosine.engine.kv_cells import row_cells
from edgecosine.engine.options import WeightForm
from edgecosine.engine.tensor_parallel.sharding import shards_cache
from edgecosine.errors import ModelUnsupported, OutOfMemory

_BYTES_PER_WEIGHT = {"nf4": 0.55, "int8": 1.05}
BLOCK_BYTES = {form: size / BLOCK_SIZE for form, size in BYTES_OF_BLOCK.items()}
"""Bytes of a weight in blocks."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of a model, in bytes."""

    weights: int
    cache: int
    workspace: int
    origin: str = ""
    """The size of the file and of the packed weights, for messages."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.workspace

    def check(self, available: int, device: str) -> None:
        """Raises OutOfMemory when the plan exceeds `available` bytes."""
        if self.total > available:
            origin = f"{self.origin}: " if self.origin else ""
            raise OutOfMemory(
                f"{origin}needs {_gib(self.total)} (weights {_gib(self.weights)}, cache "
                f"{_gib(self.cache)}, workspace {_gib(self.workspace)}) but {device} has "
                f"{_gib(available)} free: use a smaller model, quantise it, or lower --slots "
                f"or --context"
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def plan_memory(
    config: Any,
    *,
    dtype: torch.dtype,
    quantize: str,
    slots: int,
    slot_size: int,
    ballast: int,
    cells: torch.dtype | None = None,
    num_ranks: int = 1,
    sizes: Sequence[int] = (),
    origin: str = "",
    form: WeightForm = "bfloat16",
) -> MemoryPlan:
    """Plan for a model of this configuration with `slots` slots of `slot_size` tokens, whose keys
    and values have the dtype of the model unless `cells` is given.

    With several ranks, the plan is for one rank. `sizes` are the elements of each weight, where the
    checkpoint has a table of them. `origin` is for the message of a plan that does not fit.
    Raises ModelUnsupported for a model without attention.
    """
    text = config.get_text_config()
    if not getattr(text, "num_attention_heads", 0):
        raise ModelUnsupported(
            f"model family {config.model_type!r} has recurrent state instead of attention, "
            "from which rejected drafts cannot be removed"
        )
    sizes = sizes or _sizes(config, dtype, ballast)
    per_weight = _BYTES_PER_WEIGHT.get(quantize, dtype.itemsize)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cells = cells or dtype
    row_bytes = row_cells(head_size, cells) * cells.itemsize
    cache = 2 * text.num_hidden_layers * heads * row_bytes * slots * slot_size
    # Packing copies one layer at a time; a tied output layer is stored twice.
    largest, total = max(sizes, default=0), sum(sizes)
    workspace = 2 * largest * dtype.itemsize // num_ranks + (64 << 20)
    if shards_cache(text):
        cache //= num_ranks
    if form in BLOCK_BYTES:
        # The embedding is not packed, and packing starts after all weights are read.
        held = int(total * BLOCK_BYTES[form]) + largest * dtype.itemsize
        workspace = max(workspace, total * dtype.itemsize - held)
        return MemoryPlan(held, int(cache), workspace, origin)
    return MemoryPlan(int(total * per_weight) // num_ranks, int(cache), workspace, origin)


def _sizes(config: Any, dtype: torch.dtype, ballast: int) -> list[int]:
    """Elements of each weight of a model, widened by `ballast`."""
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    widened = {"gate_proj", "up_proj", "down_proj"}
    return [
        parameter.numel() * (1 if widened.isdisjoint(name.split(".")) else ballast)
        for name, parameter in shape.named_parameters()
    ]
