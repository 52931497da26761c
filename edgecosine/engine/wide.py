"""The exact value of a model's forward, near enough: its weights as they are, computed widely.

Weights are widened operator by operator, so that no more than one of them exists twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SELECTING = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)
"""Take some rows of a weight: these are widened, not all of it."""


@contextmanager
def computing_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Context in which `model` and all else in torch computes in `dtype` where it would in a
    narrower one; logits are of that dtype, too.

    Raises whatever an operator raises that there is not in `dtype`.
    """
    # Fused products of experts know no float64, and would be widened all at once.
    experts = getattr(model.config, "_experts_implementation", None)
    if experts is not None:
        model.set_experts_implementation("eager")
    try:
        with _Widening(dtype):
            yield
    finally:
        if experts is not None:
            model.set_experts_implementation(experts)


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Views and what an operator writes to stay as they are, and so do the arguments of operators
    that are not torch's own."""

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
        if func.namespace != "aten":
            return func(*args, **kwargs)
        if func in _SELECTING:
            return self._widened(func(*args, **kwargs))
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
