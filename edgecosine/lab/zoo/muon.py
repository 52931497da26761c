"""Muon in float32 for processors without bfloat16 units.

`torch.optim.Muon` orthogonalises in bfloat16, one matrix at a time. On a processor that emulates
bfloat16 this takes several times as long as the backward pass. This implementation computes in
float32 and treats all matrices of one shape as a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(batch: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices of a batch (n, rows, columns), by a quintic
    Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    wide = batch if batch.shape[1] <= batch.shape[2] else batch.mT
    x: Tensor = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if batch.shape[1] <= batch.shape[2] else x.mT


class Muon:
    """Momentum with orthogonalised updates; the caller sets `lr` before each step."""

    def __init__(self, parameters: Iterable[Tensor], momentum: float = 0.95) -> None:
        self.lr = 0.0
        self._momentum = momentum
        self._groups: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            self._groups.setdefault((parameter.shape[0], parameter.shape[1]), []).append(parameter)
        self._buffers = {
            shape: torch.zeros(len(members), *shape) for shape, members in self._groups.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients."""
        for (rows, columns), members in self._groups.items():
            gradients = torch.stack([p.grad for p in members if p.grad is not None])
            buffer = self._buffers[rows, columns]
            buffer.lerp_(gradients, 1 - self._momentum)
            update = orthogonalise(gradients.lerp(buffer, self._momentum))
            scale = self.lr * max(1.0, rows / columns) ** 0.5
            for parameter, change in zip(members, update, strict=True):
                parameter.sub_(change, alpha=scale)
