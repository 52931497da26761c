"""Low-rank changes to a drafter's matrices (LoRA, arXiv 2106.09685): what makes a specialist of it.

A specialist differs from the generalist by little, and its file is an eighth of its size this way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class LowRank(nn.Module):
    """y = x (W + B A)^T, of which A [rank, inputs] and B [outputs, rank] are learned."""

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
    """Let a student learn changes of a rank to its matrices, and nothing else."""
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, last = name.rpartition(".")
            setattr(student.get_submodule(owner), last, LowRank(module, rank))


def changes(student: LlamaForCausalLM) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name, A and B of every matrix that was adapted."""
    for name, module in student.named_modules():
        if isinstance(module, LowRank):
            yield name, cast(Tensor, module.a).detach(), cast(Tensor, module.b).detach()
