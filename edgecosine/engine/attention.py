"""The attention function that every model family runs with.

A forward pass is flat: the rows of any mix of sessions are one sequence. Each row names its slot of
the cache, the KV position that it writes and those that it sees. transformers passes queries, keys
and values of the new rows to `attend`, which calls the `Attention` that the running model has set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import nn
from transformers import AttentionInterface

NAME = "edgecosine_slots"


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of a forward pass; int32 [rows] unless noted.

    A row sees the first `length` KV positions of its slot and then `path[:path_length]`, which are
    in the order of the sequence.
    """

    tokens: torch.Tensor  # int64
    positions: torch.Tensor  # int64
    slot: torch.Tensor
    kv_position: torch.Tensor
    length: torch.Tensor
    path: torch.Tensor  # [rows, longest path]
    path_length: torch.Tensor

    def to(self, device: torch.device) -> BatchRows:
        """The same rows on `device`."""
        if device.type == "cpu":
            return self
        return BatchRows(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer: [slots, groups, slot size, cells of a row], zeros where unused
    (`kv_cells.py`)."""

    keys: torch.Tensor
    values: torch.Tensor

    def move(self, slot: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy KV positions within a slot; source and target may overlap."""
        self.keys[slot, :, target] = self.keys[slot, :, source]
        self.values[slot, :, target] = self.values[slot, :, source]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot."""
        for cells in (self.keys, self.values):
            cells[target, :, start:end] = cells[source, :, start:end]


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries, keys and values of all rows in one layer, and the settings of the layer."""

    query: torch.Tensor  # [1, heads, rows, key size]
    key: torch.Tensor  # [1, groups, rows, key size]
    value: torch.Tensor  # [1, groups, rows, value size]
    scale: float
    softcap: float = 0.0
    """0: none."""
    window: int = 0
    """0: none."""
    sinks: torch.Tensor | None = None  # [heads]


class Attention(Protocol):
    """Replaces the attention of a layer during a forward pass."""

    def attend(self, module: nn.Module, inputs: AttentionInputs) -> torch.Tensor:
        """Store the keys and values of the layer `module` and attend; returns [1, rows, heads,
        value size]."""


class _Current(threading.local):
    attention: Attention | None = None


_current = _Current()


@contextmanager
def attending_by(attention: Attention) -> Iterator[None]:
    """Context in which the models of this thread attend by `attention`."""
    _current.attention = attention
    try:
        yield
    finally:
        _current.attention = None


def attend(
    module: nn.Module,
    query: torch.Tensor,  # [1, heads, rows, key size]
    key: torch.Tensor,  # [1, groups, rows, key size]
    value: torch.Tensor,  # [1, groups, rows, value size]
    _attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; returns [1, rows, heads, value size]."""
    attention = _current.attention
    if attention is None:
        raise RuntimeError("the model was called outside its engine")
    scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
    inputs = AttentionInputs(query, key, value, scale, softcap or 0.0, sliding_window or 0, s_aux)
    return attention.attend(module, inputs), None


AttentionInterface.register(NAME, attend)
