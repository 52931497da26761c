"""Low-rank changes to a drafter's matrices (LoRA, arXiv 2106.09685), which make it a specialist.

A specialist differs little from the generalist, so a file of its changes has an eighth of the size
of a whole drafter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class LowRank(nn.Module):
    """y = x (W + B A)^T, where A [rank, inputs] and B [outputs, rank] are trained."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        like = linear.weight
        start = torch.randn(rank, linear.in_features) * linear.in_features**-0.5
        self.a = nn.Parameter(start.to(like))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank).to(like))

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        changed: Tensor = self.linear(x) + (x @ self.a.T) @ self.b.T
        return changed


def adapt(student: LlamaForCausalLM, rank: int) -> None:
    """Freeze a student and add trainable changes of this rank to its matrices."""
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, last = name.rpartition(".")
            setattr(student.get_submodule(owner), last, LowRank(module, rank))


def changes(student: LlamaForCausalLM) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields of every adapted matrix its name, A [rank, inputs] and B [outputs, rank]."""
    for name, module in student.named_modules():
        if isinstance(module, LowRank):
            yield name, cast(Tensor, module.a).detach(), cast(Tensor, module.b).detach()
