"""The one attention function that every model family is run with.

A pass is flat: rows of any mix of sessions lie side by side in one sequence, and each row says
which slot of the cache it belongs to, which cell it writes and which cells it sees. transformers
hands queries, keys and values of the new rows to `attend`; it stores the keys and values and
attends over the cache, through the compiled kernel or, without one, through plain torch. Passes of
static shapes bring an `Attention` of their own (`cuda/padded_attention.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from edgecosine.engine.cpu.kernel_library import Kernels

NAME = "edgecosine_slots"


@dataclass(frozen=True, slots=True)
class BatchRows:
    """What each row of a pass is and sees; int32 [rows] unless said otherwise.

    A row sees the first `length` cells of its slot and then the cells `path[:path_length]`, which
    are in order of their position in the sequence.
    """

    tokens: torch.Tensor  # int64
    positions: torch.Tensor  # int64
    slot: torch.Tensor
    cell: torch.Tensor
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
    """Keys and values of one layer: [slots, groups, cells, size], zeros where nothing is."""

    keys: torch.Tensor
    values: torch.Tensor

    def move(self, slot: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy cells within a slot; source and target may overlap."""
        self.keys[slot, :, target] = self.keys[slot, :, source]
        self.values[slot, :, target] = self.values[slot, :, source]


class Attention(Protocol):
    """What a pass does in a layer's place of attention."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,  # [1, heads, rows, key size]
        key: torch.Tensor,  # [1, groups, rows, key size]
        value: torch.Tensor,  # [1, groups, rows, value size]
        scale: float,
        softcap: float,
        window: int,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store keys and values, attend; returns [1, rows, heads, value size]. A softcap or window
        of 0 is none; sinks are [heads]."""


@dataclass(slots=True)
class AttentionState:
    """The cache of one model, and the rows of the pass that runs now; implements `Attention`."""

    slots: int
    cells: int
    threads: int
    kernels: Kernels | None
    layers: dict[nn.Module, LayerCache] = field(default_factory=dict)
    rows: BatchRows | None = None

    def layer(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor) -> LayerCache:
        """The cache of the layer `module`, made at its first pass from the shapes it shows."""
        cache = self.layers.get(module)
        if cache is None:
            shape = (self.slots, key.shape[1], self.cells)
            cache = LayerCache(
                key.new_zeros(*shape, key.shape[3]),
                value.new_zeros(*shape, value.shape[3]),
            )
            self.layers[module] = cache
        return cache

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        softcap: float,
        window: int,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store keys and values, attend by the kernels or by plain torch."""
        cache = self.layer(module, key, value)
        run = _plain if self.kernels is None else _compiled
        return run(self, cache, query, key, value, scale, softcap, window, sinks)


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
    out = attention.attend(
        module, query, key, value, scale, softcap or 0.0, sliding_window or 0, s_aux
    )
    return out, None


def _compiled(
    state: AttentionState,
    cache: LayerCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    softcap: float,
    window: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    rows, kernels = state.rows, state.kernels
    assert rows is not None
    assert kernels is not None
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    strides = torch.tensor([s for x in (query, key, value) for s in (x.stride(2), x.stride(1))])
    heads, count, key_size = query.shape[1:]
    groups, value_size = value.shape[1], value.shape[3]
    out = torch.empty(1, count, heads, value_size, dtype=query.dtype)
    sinks = None if sinks is None else sinks.float().contiguous()
    is_done = kernels.library.edgecosine_attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), strides.data_ptr(),
        cache.keys.data_ptr(), cache.values.data_ptr(),
        rows.slot.data_ptr(), rows.cell.data_ptr(), rows.length.data_ptr(),
        rows.path.data_ptr(), rows.path_length.data_ptr(),
        None if sinks is None else sinks.data_ptr(), out.data_ptr(),
        count, heads, groups, key_size, value_size, state.slots, state.cells, rows.path.shape[1],
        scale, softcap, window, query.element_size(), state.threads,
    )  # fmt: skip
    if not is_done:
        raise IndexError(f"rows beyond a cache of {state.slots} slots of {state.cells} cells")
    return out


def _plain(
    state: AttentionState,
    cache: LayerCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    softcap: float,
    window: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    rows = state.rows
    assert rows is not None
    slot, cell = rows.slot.long(), rows.cell.long()
    cache.keys[slot, :, cell] = key[0].transpose(0, 1)
    cache.values[slot, :, cell] = value[0].transpose(0, 1)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for number in sorted(set(slot.tolist())):
        at = (slot == number).nonzero()[:, 0]
        mask = _visible(rows, at, window)
        keys, values = (
            cache.keys[number, :, : mask.shape[1]],
            cache.values[number, :, : mask.shape[1]],
        )
        out[0, at] = _softmax_attention(query[0, :, at], keys, values, mask, scale, softcap, sinks)
    return out


def _visible(rows: BatchRows, at: torch.Tensor, window: int) -> torch.Tensor:
    """Which cells the rows `at` of one slot see: bool [rows, cells in use]."""
    cells = int(rows.cell[at].max()) + 1
    lengths, counts, paths = rows.length[at], rows.path_length[at], rows.path[at].long()
    device = lengths.device
    index = torch.arange(cells, device=device)
    position = index.expand(len(at), cells).clone()
    mask = index < lengths[:, None]
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        mask[row, paths[row, :count]] = True
        position[row, paths[row, :count]] = torch.arange(length, length + count, device=device)
    if window:
        mask &= (lengths + counts)[:, None] - position <= window
    return mask


def _softmax_attention(
    query: torch.Tensor,  # [heads, rows, key size]
    keys: torch.Tensor,  # [groups, cells, key size]
    values: torch.Tensor,
    mask: torch.Tensor,  # [rows, cells]
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    heads, count, size = query.shape
    groups = keys.shape[0]
    folded = query.reshape(groups, heads // groups * count, size)
    scores = (folded @ keys.transpose(1, 2)).view(heads, count, -1).float() * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(-1, 1, 1).expand(heads, count, 1)], -1)
    weights = scores.softmax(-1)[..., : mask.shape[1]].to(values.dtype)
    mixed = weights.view(groups, heads // groups * count, -1) @ values
    return mixed.view(heads, count, -1).transpose(0, 1)


AttentionInterface.register(NAME, attend)
