"""Attention over a cache of slots, by the compiled kernels or, without them, by plain torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from edgecosine.engine.attention import AttentionInputs, BatchRows, LayerCache
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.kv_cells import from_cells, row_cells, to_cells


@dataclass(slots=True)
class SlotAttention:
    """The cache of one model and the rows of the running forward pass; implements `Attention`."""

    slots: int
    slot_size: int
    threads: int
    kernels: Kernels | None
    cells: torch.dtype | None = None
    """Number format of the cache; None: that of computation."""
    layers: dict[nn.Module, LayerCache] = field(default_factory=dict)
    rows: BatchRows | None = None

    def layer(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor) -> LayerCache:
        """The cache of the layer `module`, allocated in its first forward pass."""
        cache = self.layers.get(module)
        if cache is None:
            dtype = self.cells or key.dtype
            shape = (self.slots, key.shape[1], self.slot_size)
            cache = LayerCache(
                *(
                    new.new_zeros(*shape, row_cells(new.shape[3], dtype), dtype=dtype)
                    for new in (key, value)
                )
            )
            self.layers[module] = cache
        return cache

    def attend(self, module: nn.Module, inputs: AttentionInputs) -> torch.Tensor:
        """Store keys and values, attend by the kernels or by plain torch."""
        cache = self.layer(module, inputs.key, inputs.value)
        run = _plain if self.kernels is None else _compiled
        return run(self, cache, inputs)


def _compiled(state: SlotAttention, cache: LayerCache, inputs: AttentionInputs) -> torch.Tensor:
    rows, kernels = state.rows, state.kernels
    assert rows is not None
    assert kernels is not None
    query, key, value = (
        x if x.stride(3) == 1 else x.contiguous() for x in (inputs.query, inputs.key, inputs.value)
    )
    strides = torch.tensor([s for x in (query, key, value) for s in (x.stride(2), x.stride(1))])
    heads, count, key_size = query.shape[1:]
    groups, value_size = value.shape[1], value.shape[3]
    out = torch.empty(1, count, heads, value_size, dtype=query.dtype)
    sinks = None if inputs.sinks is None else inputs.sinks.float().contiguous()
    is_done = kernels.library.edgecosine_attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), strides.data_ptr(),
        cache.keys.data_ptr(), cache.values.data_ptr(),
        rows.slot.data_ptr(), rows.kv_position.data_ptr(), rows.length.data_ptr(),
        rows.path.data_ptr(), rows.path_length.data_ptr(),
        None if sinks is None else sinks.data_ptr(), out.data_ptr(),
        count, heads, groups, key_size, value_size, state.slots, state.slot_size,
        rows.path.shape[1], inputs.scale, inputs.softcap, inputs.window, query.element_size(),
        cache.keys.element_size(), state.threads,
    )  # fmt: skip
    if not is_done:
        raise IndexError(
            f"rows beyond a cache of {state.slots} slots of {state.slot_size} KV positions"
        )
    return out


def _plain(state: SlotAttention, cache: LayerCache, inputs: AttentionInputs) -> torch.Tensor:
    rows, query, value = state.rows, inputs.query, inputs.value
    assert rows is not None
    slot, kv_position = rows.slot.long(), rows.kv_position.long()
    dtype = cache.keys.dtype
    cache.keys[slot, :, kv_position] = to_cells(inputs.key[0].transpose(0, 1), dtype)
    cache.values[slot, :, kv_position] = to_cells(value[0].transpose(0, 1), dtype)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for number in sorted(set(slot.tolist())):
        at = (slot == number).nonzero()[:, 0]
        mask = _visible(rows, at, inputs.window)
        keys, values = (
            from_cells(cells[number, :, : mask.shape[1]], query.dtype)
            for cells in (cache.keys, cache.values)
        )
        out[0, at] = _softmax_attention(query[0, :, at], keys, values, mask, inputs)
    return out


def _visible(rows: BatchRows, at: torch.Tensor, window: int) -> torch.Tensor:
    """Which KV positions the rows `at` of one slot see: bool [rows, positions in use]."""
    slot_size = int(rows.kv_position[at].max()) + 1
    lengths, counts, paths = rows.length[at], rows.path_length[at], rows.path[at].long()
    device = lengths.device
    index = torch.arange(slot_size, device=device)
    position = index.expand(len(at), slot_size).clone()
    mask = index < lengths[:, None]
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        mask[row, paths[row, :count]] = True
        position[row, paths[row, :count]] = torch.arange(length, length + count, device=device)
    if window:
        mask &= (lengths + counts)[:, None] - position <= window
    return mask


def _softmax_attention(
    query: torch.Tensor,  # [heads, rows, key size]
    keys: torch.Tensor,  # [groups, KV positions, key size]
    values: torch.Tensor,
    mask: torch.Tensor,  # [rows, KV positions]
    inputs: AttentionInputs,
) -> torch.Tensor:
    heads, count, size = query.shape
    groups = keys.shape[0]
    folded = query.reshape(groups, heads // groups * count, size)
    scores = (folded @ keys.transpose(1, 2)).view(heads, count, -1).float() * inputs.scale
    if inputs.softcap:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    if inputs.sinks is not None:
        sinks = inputs.sinks.float().view(-1, 1, 1).expand(heads, count, 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : mask.shape[1]].to(values.dtype)
    mixed = weights.view(groups, heads // groups * count, -1) @ values
    return mixed.view(heads, count, -1).transpose(0, 1)
