"""Rotary embeddings that depend on the row's own sequence alone.

transformers chooses some frequencies by the highest position of a forward pass, which here has rows
of many sequences. They are fixed at load instead:

dynamic    changes beyond `max_position_embeddings`, which no sequence here exceeds: kept as loaded
longrope   short factors for a sequence of at most `original_max_position_embeddings` tokens, long
           ones for all tokens of a longer one. A sequence that grows beyond is prefilled again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from edgecosine.errors import ModelUnsupported

LONG: Final = 1 << 30
"""Added to the positions of a sequence whose tokens take the long factors."""
_LONGROPE: Final = "longrope"


def switching_length(config: Any) -> int:
    """Most tokens of a sequence that takes the short factors of a longrope; 0 where all sequences
    take the same. `config` is the configuration of the model or of its text model.

    Raises ModelUnsupported where this length differs between layers.
    """
    lengths = {
        int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in _ropes(config)
        if rope.get("rope_type") == _LONGROPE
    }
    if len(lengths) > 1:
        raise ModelUnsupported(
            f"model family {config.model_type!r}: layers change their rotary factors at different "
            f"lengths ({', '.join(map(str, sorted(lengths)))})"
        )
    return lengths.pop() if lengths else 0


def mark_of(length: int, switches_at: int) -> int:
    """The offset of the positions of a sequence of `length` tokens: `LONG` or 0."""
    return LONG if 0 < switches_at < length else 0


def rotate_by_sequence(model: nn.Module) -> None:
    """Make the rotary embeddings of a model independent of the rest of the batch, in place.
    Longropes then choose their factors by the offset `LONG` of positions."""
    for name, module in list(model.named_modules()):
        kinds = _kinds(module)
        if _LONGROPE in kinds:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _MarkedRotary(module))
        elif any("dynamic" in kind for kind in kinds):
            _freeze(module)


class _MarkedRotary(nn.Module):
    """A longrope that chooses its factors for each row."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.short, self.long = rotary, copy.deepcopy(rotary)
        self.attention_scaling = rotary.attention_scaling
        device = next(rotary.buffers()).device
        for part, position in ((self.short, 0), (self.long, switching_length(rotary.config))):
            for where in _layers(part):
                part(
                    torch.zeros(1, device=device), torch.tensor([[position]], device=device), *where
                )
            _freeze(part)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *layer: str, **named: str
    ) -> tuple[torch.Tensor, ...]:
        """Cosines and sines [1, rows, size] of positions with or without the offset."""
        is_long = position_ids >= LONG
        positions = torch.where(is_long, position_ids - LONG, position_ids)
        pairs = zip(
            self.long(x, positions, *layer, **named),
            self.short(x, positions, *layer, **named),
            strict=True,
        )
        return tuple(torch.where(is_long[..., None], long, short) for long, short in pairs)


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    ropes = getattr(config, "rope_parameters", None) or {}
    yield ropes
    yield from (rope for rope in ropes.values() if isinstance(rope, Mapping))


def _kinds(module: nn.Module) -> list[str]:
    kind = getattr(module, "rope_type", None)
    return [str(each) for each in (kind.values() if isinstance(kind, Mapping) else [kind])]


def _layers(rotary: Any) -> list[tuple[str, ...]]:
    """Further arguments of a rotary embedding, for each of its kinds."""
    kind = rotary.rope_type
    return [(layer,) for layer in kind] if isinstance(kind, Mapping) else [()]


def _freeze(rotary: Any) -> None:
    """Keep the current frequencies: transformers updates those of certain kinds only."""
    kind = rotary.rope_type
    rotary.rope_type = dict.fromkeys(kind, "fixed") if isinstance(kind, Mapping) else "fixed"
