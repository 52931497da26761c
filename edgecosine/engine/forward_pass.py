"""The interface of a model that runs forward passes over a cache of slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch.distributed.tensor import DTensor

from edgecosine.engine.attention import BatchRows


class ForwardModel(Protocol):
    """Runs flat passes over a cache of slots."""

    @property
    def slot_size(self) -> int:
        """Tokens that a slot has room for, draft nodes included."""

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights and of the cache."""

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows; float32 logits [len(keep), vocabulary] of the rows numbered in `keep`, on
        the device that computed them: whoever reads them there need not copy a vocabulary."""

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy the keys and values of `source` cells to `target` cells of a slot, all layers."""

    def clear(self, slot: int) -> None:
        """Let nothing that lies in a slot reach rows that do not see it, NaN included."""


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of tensors, of their local shards where they are split; shared memory counts once."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local)}
    return sum(storages.values())
