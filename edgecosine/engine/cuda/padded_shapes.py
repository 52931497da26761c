"""Pads batches to a few fixed shapes, with all numbers in one tensor.

A recorded graph runs the same kernels on the same addresses, so all that varies between two batches
of a shape must be a number in a tensor. All numbers of a batch are one int64 tensor: one copy.

Attention needs rows by session: row r of the flat batch has place `grid[r]` in a grid of [groups,
width], where a group has the rows of one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from edgecosine.engine.attention import BatchRows

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_KEEP = (1, 8, 32, 128)
_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
_WIDTHS = (1, 8, 16, 64, 128)
_VISIBLE = (128, 256, 512, 1024, 2048, 4096)
_PATHS = (1, 8, 64)


def round_up(count: int, steps: Sequence[int]) -> int:
    """The first step that `count` fits in; beyond the last one, a multiple of it."""
    for step in steps:
        if count <= step:
            return step
    return -(-count // steps[-1]) * steps[-1]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes that a batch is padded to."""

    rows: int
    keep: int
    """Rows whose logits are computed."""
    groups: int
    """Slots in attention."""
    width: int
    """Most rows of one slot."""
    num_visible: int
    """KV positions of each slot in attention."""
    path: int
    """Length of the longest path of a tree."""

    @property
    def sizes(self) -> list[int]:
        """Numbers in each field of `BatchInputs`."""
        return [*[self.rows] * 7, self.rows * self.path, self.keep, self.groups, self.area]

    @property
    def area(self) -> int:
        """Places in the grid."""
        return self.groups * self.width


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """A padded batch; int64, views of one tensor."""

    tokens: torch.Tensor  # [rows]
    positions: torch.Tensor  # [rows]
    slot: torch.Tensor  # [rows]
    kv_position: torch.Tensor  # [rows]
    length: torch.Tensor  # [rows]
    path_length: torch.Tensor  # [rows]
    grid: torch.Tensor  # [rows] place of each row in the grid
    path: torch.Tensor  # [rows, path] padded with positions that the row sees anyway
    keep: torch.Tensor  # [keep] row of each line of logits
    group: torch.Tensor  # [groups] slot of each group
    row: torch.Tensor  # [groups * width] row at each place of the grid

    @staticmethod
    def views(flat: torch.Tensor, shape: BatchShape) -> BatchInputs:
        """The parts of `flat`; they share its memory."""
        names = [field.name for field in fields(BatchInputs)]
        parts = dict(zip(names, torch.split_with_sizes(flat, shape.sizes), strict=True))
        return BatchInputs(**(parts | {"path": parts["path"].view(shape.rows, shape.path)}))


def arrange(
    rows: BatchRows, keep: Sequence[int], *, slots: int, slot_size: int, scratch: int
) -> tuple[BatchShape, torch.Tensor]:
    """Pad a batch; returns its shape and its numbers as one int64 tensor on the CPU.

    `slot_size` is the allocated size of a slot. Rows of padding write to the KV position `scratch`,
    which no row sees, see the first position of slot 0 and are in no group, so they change no other
    row. When the shape has all slots, group and slot are the same number.
    """
    at, ranks = rows.slot.tolist(), list[int]()
    counts = dict[int, int]()
    for slot in at:
        ranks.append(counts.get(slot, 0))
        counts[slot] = ranks[-1] + 1
    num_rows = round_up(len(at), ROWS)
    has_paths = bool(rows.path_length.any())
    shape = BatchShape(
        rows=num_rows,
        keep=min(round_up(len(keep), _KEEP), num_rows),
        groups=min(round_up(len(counts), _GROUPS), slots),
        width=min(round_up(max(counts.values()), _WIDTHS), num_rows),
        num_visible=min(round_up(int(rows.kv_position.max()) + 1, _VISIBLE), slot_size),
        path=round_up(rows.path.shape[1] if has_paths else 1, _PATHS),
    )
    order = list(range(slots)) if shape.groups == slots else list(counts)
    group_of = {slot: group for group, slot in enumerate(order)}
    indices = [group_of[slot] * shape.width + rank for slot, rank in zip(at, ranks, strict=True)]
    flat = torch.zeros(sum(shape.sizes), dtype=torch.int64)
    inputs = BatchInputs.views(flat, shape)
    count = len(at)
    for name in ("tokens", "positions", "slot", "kv_position", "length", "path_length"):
        getattr(inputs, name)[:count] = getattr(rows, name)
    inputs.kv_position[count:] = scratch
    inputs.length[count:] = 1
    inputs.path[:count] = _padded_paths(rows, shape.path)
    inputs.grid[:count] = torch.tensor(indices)
    inputs.row[inputs.grid[:count]] = torch.arange(count)
    inputs.keep[: len(keep)] = torch.tensor(keep, dtype=torch.int64)
    inputs.group[: len(order)] = torch.tensor(order)
    return shape, flat


def _padded_paths(rows: BatchRows, width: int) -> torch.Tensor:
    """Paths [rows, width], padded with their last KV position; empty ones with the one before."""
    last = (rows.path_length.long() - 1)[:, None]
    index = torch.minimum(torch.arange(width)[None], last).clamp(min=0)
    kv_positions = rows.path.long().gather(1, index.clamp(max=rows.path.shape[1] - 1))
    return torch.where(last < 0, rows.length.long()[:, None] - 1, kv_positions)
