"""Lengths in a configuration from which a model computes differently: windows, chunks and the like.

The self-test sets a length of 4096 to 6 for its duration, so that a few tokens exceed it. Weights
and code are not changed.
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
"""floor_scale: position from which queries are scaled; index_topk: tokens of sparse attention."""


def limits_of(config: Any, context: int) -> dict[str, int]:
    """The lengths of a text model that are shorter than `context` tokens, by name."""
    found = {name: getattr(config, name, None) for name in _NAMES}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int) and 0 < value < context
    }


def refuse_chunks(config: Any, context: int) -> None:
    """Raises ModelUnsupported where `context` exceeds a chunk of attention, which is not
    implemented here."""
    chunk = limits_of(config, context).get(_CHUNK)
    if chunk and _CHUNKED in (getattr(config, "layer_types", None) or (_CHUNKED,)):
        raise ModelUnsupported(
            f"model family {config.model_type!r} attends in chunks of {chunk} tokens, which is not "
            f"served: take --context {chunk} or less"
        )


@contextmanager
def shortened(model: nn.Module, limits: Mapping[str, int]) -> Iterator[None]:
    """Context in which the model and its configurations have the lengths `limits`, by name."""
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
