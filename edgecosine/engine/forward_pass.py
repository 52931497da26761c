"""The interface of a model that runs forward passes over a cache of slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch.distributed.tensor import DTensor

from edgecosine.engine.attention import BatchRows


class ForwardModel(Protocol):
    """A model that runs flat forward passes over a cache of slots."""

    @property
    def slot_size(self) -> int:
        """KV positions of a slot, those for draft nodes included."""

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights, and of the cache."""

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows; returns float32 logits [len(keep), vocabulary] of the rows numbered in
        `keep`, on the device of the model."""

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy keys and values from `source` to `target` KV positions of a slot, in all layers."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot, in all layers."""

    def clear(self, slot: int) -> None:
        """Remove NaN from a slot where it could reach rows that do not see it."""


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, or of their local shards; shared memory counts once."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local)}
    return sum(storages.values())
