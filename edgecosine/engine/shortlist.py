"""Output layers for the most frequent tokens only (FR-Spec, arXiv 2502.14856).

The output layer takes most of the time of a small drafter, and a few thousand tokens are nearly all
that a model produces. A drafter never proposes the others.
"""

from __future__ import annotations

import torch
from torch import nn

_LANES = 16
"""Entries that the kernels read at once, at most."""


class ShortlistHead(nn.Module):
    """Logits [..., vocabulary] of an output layer for the tokens of a shortlist; -inf elsewhere."""

    tokens: torch.Tensor

    def __init__(self, linear: nn.Linear, tokens: torch.Tensor, vocabulary: int) -> None:
        """`linear` has one output for each of `tokens` [n], which are ids below `vocabulary`."""
        super().__init__()
        self.linear, self.vocabulary = linear, vocabulary
        self.register_buffer("tokens", tokens.to(torch.int64), persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:  # [..., hidden]
        return spread(self.linear(states), self.tokens, self.vocabulary)


def spread(logits: torch.Tensor, tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits [..., n] of `tokens` [n] as logits [..., vocabulary]."""
    wide = logits.new_full((*logits.shape[:-1], vocabulary), -torch.inf)
    wide[..., tokens] = logits
    return wide


def padded(tokens: torch.Tensor) -> torch.Tensor:
    """The ids, padded with zeros to a multiple of the kernels' lanes."""
    return nn.functional.pad(tokens, (0, -len(tokens) % _LANES))
