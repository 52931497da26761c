"""Attention over padded batches, without a loop over sessions and without waits for the device.

All shapes follow from the `BatchShape`, all choices are indexes or masks in tensors, so the kernels
can be recorded once and replayed with other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from edgecosine.engine.attention import AttentionInputs, LayerCache, attending_by
from edgecosine.engine.cuda.padded_shapes import BatchInputs, BatchShape
from edgecosine.engine.kv_cells import from_cells, row_cells, to_cells


@dataclass(frozen=True, slots=True)
class _Layout:
    """Groups, cells of a row, and their type, of the keys or values of one layer."""

    groups: int
    size: int
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor, cells: torch.dtype | None) -> _Layout:
        dtype = cells or tensor.dtype
        return _Layout(tensor.shape[1], row_cells(tensor.shape[3], dtype), dtype)


@dataclass(slots=True)
class Layers:
    """Collects the layers of a model in one forward pass; implements `Attention`."""

    cells: torch.dtype | None = None
    """Number format of the cache; None: that of computation."""
    found: dict[nn.Module, tuple[_Layout, _Layout]] = field(default_factory=dict)

    def attend(self, module: nn.Module, inputs: AttentionInputs) -> torch.Tensor:
        """Record the layer; returns zeros [1, rows, heads, value size]."""
        self.found[module] = (
            _Layout.of(inputs.key, self.cells),
            _Layout.of(inputs.value, self.cells),
        )
        query = inputs.query
        return query.new_zeros(1, query.shape[2], query.shape[1], inputs.value.shape[3])


def find_layers(run: Callable[[], object], cells: torch.dtype | None = None) -> Layers:
    """The layers that compute attention while `run` runs, with a cache in the format `cells`."""
    layers = Layers(cells)
    with attending_by(layers):
        run()
    return layers


class PaddedAttention:
    """The cache of one model and the running forward pass; implements `Attention`.

    `slot_size` includes the scratch position. Layers of one layout share a tensor [keys and values
    of all layers, slots, groups, slot size, size], so a move takes two kernels at any depth.
    """

    def __init__(self, layers: Layers, *, slots: int, slot_size: int, device: torch.device) -> None:
        self._slots = slots
        by_layout: dict[_Layout, list[tuple[nn.Module, int]]] = {}
        for module, layouts in layers.found.items():
            for part, layout in enumerate(layouts):
                by_layout.setdefault(layout, []).append((module, part))
        self.stacks: list[torch.Tensor] = []
        """All memory of the cache."""
        tensors: dict[tuple[nn.Module, int], torch.Tensor] = {}
        for layout, users in by_layout.items():
            size = (len(users), slots, layout.groups, slot_size, layout.size)
            stack = torch.zeros(size, dtype=layout.dtype, device=device)
            self.stacks.append(stack)
            tensors.update(zip(users, stack.unbind(), strict=True))
        self._caches = {
            module: LayerCache(tensors[module, 0], tensors[module, 1]) for module in layers.found
        }
        self._shape: BatchShape | None = None
        self._inputs: BatchInputs | None = None
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def begin(self, shape: BatchShape, inputs: BatchInputs) -> None:
        """Set the batch of the forward pass that begins."""
        self._shape, self._inputs = shape, inputs
        self._masks = {}

    def end(self) -> None:
        """Clear the batch after the forward pass."""
        self._shape, self._inputs, self._masks = None, None, {}

    def move(self, slot: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy KV positions in all layers: int64 [moves] each, on the cache's device; no target is
        the source of a later move."""
        for stack in self.stacks:
            stack[:, slot, :, target] = stack[:, slot, :, source]

    def attend(self, module: nn.Module, inputs: AttentionInputs) -> torch.Tensor:
        """Store keys and values, attend; returns [1, rows, heads, value size]."""
        shape, batch = self._shape, self._inputs
        assert shape is not None
        assert batch is not None
        cache = self._caches[module]
        dtype = cache.keys.dtype
        cache.keys[batch.slot, :, batch.kv_position] = to_cells(
            inputs.key[0].transpose(0, 1), dtype
        )
        cache.values[batch.slot, :, batch.kv_position] = to_cells(
            inputs.value[0].transpose(0, 1), dtype
        )
        keys, values = (
            from_cells(self._visible(cells), inputs.query.dtype)
            for cells in (cache.keys, cache.values)
        )
        heads, groups = inputs.query.shape[1], keys.shape[1]
        share = heads // groups
        # Heads that share a key are folded into rows, so that no key is copied.
        folded = (
            inputs.query[0]
            .transpose(0, 1)
            .index_select(0, batch.row)
            .view(shape.groups, shape.width, groups, share, -1)
            .permute(0, 2, 3, 1, 4)
            .reshape(shape.groups, groups, share * shape.width, -1)
        )
        mask = self._mask(inputs.window, share)
        if inputs.softcap or inputs.sinks is not None:
            mixed = _softmax_attention(folded, keys, values, mask, inputs)
        else:
            scale = inputs.scale
            mixed = scaled_dot_product_attention(folded, keys, values, mask, scale=scale)
        placed = (
            mixed.view(shape.groups, groups, share, shape.width, -1)
            .permute(0, 3, 1, 2, 4)
            .reshape(shape.area, heads, -1)
        )
        return placed.index_select(0, batch.grid)[None]

    def _visible(self, cache: torch.Tensor) -> torch.Tensor:
        """[slots, groups, slot size, cells] -> [groups of rows, groups, positions, cells]."""
        assert self._shape is not None
        assert self._inputs is not None
        view = cache[:, :, : self._shape.num_visible]
        return (
            view if self._shape.groups == self._slots else view.index_select(0, self._inputs.group)
        )

    def _mask(self, window: int, share: int) -> torch.Tensor:
        """Whether a place of the grid sees a KV position: [groups, 1, share * width, visible]."""
        mask = self._masks.get((window, share))
        if mask is None:
            shape, inputs = self._shape, self._inputs
            assert shape is not None
            assert inputs is not None
            seen = visible(inputs, shape.num_visible, window).index_select(0, inputs.row)
            mask = (
                seen.view(shape.groups, 1, 1, shape.width, shape.num_visible)
                .expand(-1, -1, share, -1, -1)
                .reshape(shape.groups, 1, share * shape.width, shape.num_visible)
            )
            self._masks[window, share] = mask
        return mask


def visible(inputs: BatchInputs, num_visible: int, window: int) -> torch.Tensor:
    """Which KV positions each row sees: bool [rows, num_visible]. A row sees at least itself."""
    device = inputs.length.device
    index = torch.arange(num_visible, device=device)[None]
    length, count = inputs.length[:, None], inputs.path_length[:, None]
    mask = (index < length).scatter(1, inputs.path, True)
    if window:
        # Padding repeats the last KV position of a path, and its position in the sequence.
        steps = torch.arange(inputs.path.shape[1], device=device)[None]
        positions = length + torch.minimum(steps, count - 1)
        position = index.expand(len(length), -1).scatter(1, inputs.path, positions)
        mask = mask & (length + count - position <= window)
    return mask


def _softmax_attention(
    query: torch.Tensor,  # [batch, groups, rows, key size]
    keys: torch.Tensor,  # [batch, groups, KV positions, key size]
    values: torch.Tensor,
    mask: torch.Tensor,  # [batch, 1, rows, KV positions]
    inputs: AttentionInputs,
) -> torch.Tensor:
    batch, groups, count, _ = query.shape
    scores = (query @ keys.transpose(2, 3)).float() * inputs.scale
    if inputs.softcap:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    if (sinks := inputs.sinks) is not None:
        share = sinks.numel() // groups
        added = sinks.float().view(1, groups, share, 1, 1)
        added = added.expand(batch, -1, -1, count // share, -1).reshape(batch, groups, count, 1)
        scores = torch.cat([scores, added], -1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    return weights @ values
