"""Runs a model in a wider number format than its weights have, to measure rounding.

Weights are converted operator by operator, and those of linear layers in pieces, so no second copy
of the model exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_LINEAR = torch.ops.aten.linear.default
_SELECTING = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)
"""Operators that select rows of a weight: the rows are converted, not the weight."""
_QUANTISED = "bitsandbytes"
"""The namespace of operators that know formats up to float32. In float64 some leave their result
uninitialised, without an error."""
_BLOCK = 1 << 18
"""Elements of a linear layer that are converted at once."""


@contextmanager
def computing_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Context in which torch computes in `dtype` in place of narrower floating-point types.

    `model` is the model that runs in it, whose logits then have this dtype. Quantised layers
    compute in float32 at most. Operators without an implementation for `dtype` raise their own
    errors.
    """
    # Fused products of experts do not support float64, and would be converted all at once.
    with eager_experts(model), _Widening(dtype):
        yield


@contextmanager
def eager_experts(model: Any) -> Iterator[None]:
    """Context in which the experts of a model are multiplied one after another."""
    experts = getattr(getattr(model, "config", None), "_experts_implementation", None)
    if experts is None:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(experts)


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Converts the arguments of torch's operators, except views and outputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if func.namespace == _QUANTISED:
            return self._widened(func(*map(_narrowed, args), **kwargs))
        if func.namespace != "aten":
            return func(*args, **kwargs)
        if func in _SELECTING:
            return self._widened(func(*args, **kwargs))
        if func is _LINEAR and not isinstance(args[1], DTensor):
            return self._linear(*args)
        parameters = func._schema.arguments
        aliased = {p.name for p in parameters if p.alias_info is not None}
        args = [
            value if parameter.name in aliased else self._widened(value)
            for parameter, value in zip(parameters, args, strict=False)
        ]
        kwargs = {
            name: value if name in aliased else self._widened(value)
            for name, value in kwargs.items()
        }
        return func(*args, **kwargs)

    def _linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self._widened(x)
        blocks = torch.split(weight, max(1, _BLOCK // weight.shape[1]))
        y = torch.cat([_LINEAR(x, self._widened(block)) for block in blocks], -1)
        return y if bias is None else y + self._widened(bias)

    def _widened(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return self._dtype if self._is_narrow(value) else value
        if isinstance(value, torch.Tensor):
            return value.to(self._dtype) if self._is_narrow(value.dtype) else value
        if isinstance(value, list | tuple):
            return type(value)(map(self._widened, value))
        return value

    def _is_narrow(self, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and dtype.itemsize < self._dtype.itemsize


def _narrowed(value: Any) -> Any:
    is_wide = isinstance(value, torch.Tensor) and value.dtype == torch.float64
    return value.float() if is_wide else value
