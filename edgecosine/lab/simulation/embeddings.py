"""The similarity of two tokens of a recorded target, by the rows of its input embedding."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from safetensors import safe_open

from edgecosine import zoo
from edgecosine.lab.distill.teacher import load_stock
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.simulation.texts import ZOO

_ROWS = "model.embed_tokens.weight"


def similarity_of(name: str) -> Callable[[int, int], float]:
    """A function that returns the cosine of the rows of two tokens, -1 to 1, for a recording.

    Its first call reads the rows, and raises the errors of `load_stock`.
    """

    def similarity(token: int, other: int) -> float:
        rows = _unit_rows(name)
        return float(rows[token] @ rows[other])

    return similarity


@functools.cache
def _unit_rows(name: str) -> torch.Tensor:
    """Rows [vocabulary, size] of length 1."""
    return torch.nn.functional.normalize(_rows(name).float(), dim=1)


def _rows(name: str) -> torch.Tensor:
    rows: torch.Tensor
    if name != ZOO:
        quiet_transformers()
        rows = load_stock(name, torch.float32).model.embed_tokens.weight.detach()
        return rows
    with safe_open(zoo.DIRECTORY / zoo.TARGET / "model.safetensors", framework="pt") as held:
        rows = held.get_tensor(_ROWS)
    return rows
