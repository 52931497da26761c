"""Lengths in a configuration beyond which a model computes otherwise: windows, chunks and the like.

A self-test of a few tokens sees what lies beyond a length of 4096 when the model is told,
for the time of the test, that it is 6. Weights and code stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

from edgecosine.errors import ModelUnsupported

WINDOW: Final = "sliding_window"
_CHUNK: Final = "attention_chunk_size"
_CHUNKED: Final = "chunked_attention"
_NAMES: Final = (WINDOW, _CHUNK, "floor_scale", "index_topk")
"""The last two: positions from which queries are scaled, tokens from which attention is sparse."""


def limits_of(config: Any, context: int) -> dict[str, int]:
    """The lengths of a text model that lie within `context` tokens, by name."""
    found = {name: getattr(config, name, None) for name in _NAMES}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int) and 0 < value < context
    }


def refuse_chunks(config: Any, context: int) -> None:
    """Raises ModelUnsupported where a context of so many tokens goes beyond a chunk of attention:
    rows here see windows or all that is before them."""
    chunk = limits_of(config, context).get(_CHUNK)
    if chunk and _CHUNKED in (getattr(config, "layer_types", None) or (_CHUNKED,)):
        raise ModelUnsupported(
            f"model family {config.model_type!r} attends in chunks of {chunk} tokens, which is not "
            f"served: take --context {chunk} or less"
        )


@contextmanager
def shortened(model: nn.Module, limits: Mapping[str, int]) -> Iterator[None]:
    """Context in which a model has other lengths: those of `limits`, by name, wherever it has the
    name."""
    owners = [vars(module) for module in model.modules()]
    configs = {id(c): c for owner in owners if (c := owner.get("config")) is not None}
    changed: list[tuple[Any, str, int]] = []
    try:
        for owner in (*model.modules(), *configs.values()):
            for name, length in limits.items():
                if isinstance(before := vars(owner).get(name), int) and before:
                    changed.append((owner, name, before))
                    setattr(owner, name, length)
        yield
    finally:
        for owner, name, before in changed:
            setattr(owner, name, before)
