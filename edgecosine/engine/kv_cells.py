"""Number formats of the KV cache: those of computation, bfloat16, and integers of 8 bits.

A row is the key or value of a token in one head. Its integers are followed by its float32 scale, so
that a row is copied, moved and counted as one run of cells in every format. `cells.h` has the same
formats for the kernels, and a test holds both equal.
"""

from __future__ import annotations

from typing import Final

import torch

_SCALE_CELLS: Final = 4
"""int8 cells that hold the scale of a row."""
_LEAST: Final = 1e-30
"""Rows of smaller values are zeros: the inverse of their scale might be infinite."""


def row_cells(size: int, dtype: torch.dtype) -> int:
    """Cells of a row of `size` values."""
    return size + _SCALE_CELLS if dtype == torch.int8 else size


def to_cells(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows [..., size] as cells [..., row_cells]. Rows with NaN or infinity become NaN."""
    if dtype != torch.int8:
        return rows.to(dtype)
    wide = rows.float()
    most = wide.abs().amax(-1, keepdim=True)
    is_zero = ~(most.isfinite() & (most >= _LEAST))
    # `127 / most` would be 127 times the rounded reciprocal.
    inverse = torch.where(is_zero, 0.0, torch.full_like(most, 127.0) / most)
    integers = torch.where(is_zero, 0.0, wide * inverse).round().to(torch.int8)
    scale = torch.where(is_zero, 0.0, most / 127.0)
    scale = torch.where(most.isfinite(), scale, torch.nan)
    return torch.cat([integers, scale.view(torch.int8)], -1)


def from_cells(cells: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows of cells, in the number format `dtype`."""
    if cells.dtype != torch.int8:
        return cells.to(dtype)
    scale = cells[..., -_SCALE_CELLS:].contiguous().view(torch.float32)
    return (cells[..., :-_SCALE_CELLS] * scale).to(dtype)
