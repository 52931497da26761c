"""How alike two tokens of the zoo's target are, by the rows of its input embedding."""

from __future__ import annotations

import functools

import torch
from safetensors import safe_open

from edgecosine import zoo

_ROWS = "model.embed_tokens.weight"


def similarity(token: int, other: int) -> float:
    """Cosine of the rows of two tokens, -1 to 1."""
    rows = _unit_rows()
    return float(rows[token] @ rows[other])


@functools.cache
def _unit_rows() -> torch.Tensor:
    """Rows [vocabulary, size] of length 1."""
    weights = zoo.DIRECTORY / zoo.TARGET / "model.safetensors"
    with safe_open(weights, framework="pt") as held:
        return torch.nn.functional.normalize(held.get_tensor(_ROWS).float(), dim=1)
