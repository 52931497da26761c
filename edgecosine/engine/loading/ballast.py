"""Ballast: makes a model as expensive as a larger one without changing its function.

Feed-forward layers are widened with random gate and up columns and zero down rows. The added
products are zero, so memory traffic and arithmetic grow while the outputs stay. Results with
ballast prove nothing about exactness: zeros hide the order of sums.
"""

from __future__ import annotations

import torch
from torch import nn

from edgecosine.errors import ModelUnsupported

_PARTS = ("gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def add_ballast(model: nn.Module, factor: int, seed: int = 0) -> int:
    """Make every gated feed-forward layer `factor` times as wide, in place.

    Returns the new number of parameters. Raises ModelUnsupported when the
    model has no gated feed-forward layers.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in model.modules() if all(hasattr(m, part) for part in _PARTS)]
    if not layers:
        raise ModelUnsupported("ballast needs gate_proj, up_proj and down_proj layers")
    for layer in layers:
        for name in _PARTS[:2]:
            setattr(layer, name, _taller(getattr(layer, name), factor, generator))
        down = layer.down_proj
        assert isinstance(down, nn.Linear)
        layer.down_proj = _wider(down, factor)
    return sum(parameter.numel() for parameter in model.parameters())


def _taller(linear: nn.Linear, factor: int, generator: torch.Generator) -> nn.Linear:
    outputs, inputs = linear.weight.shape
    grown = _empty(inputs, outputs * factor, linear.weight.dtype)
    grown.weight.normal_(std=inputs**-0.5, generator=generator)
    # Rounded to bfloat16 like checkpoints; a float32 model would read twice the bytes.
    grown.weight.copy_(grown.weight.bfloat16())
    grown.weight[:outputs] = linear.weight
    return grown


def _wider(linear: nn.Linear, factor: int) -> nn.Linear:
    outputs, inputs = linear.weight.shape
    grown = _empty(inputs * factor, outputs, linear.weight.dtype)
    grown.weight.zero_()
    grown.weight[:, :inputs] = linear.weight
    return grown


def _empty(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    return linear.to_empty(device="cpu")
