"""A graph recorder for machines without a GPU, with the restrictions of CUDA graphs.

Every operation is kept with the tensors that it read and wrote; a replay runs the operations again
on these same tensors. What Python read or decided between them is frozen, and what would make the
host wait is refused, as in a capture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "argwhere"),
    *("masked_select", "_unique2", "unique_dim", "bincount"),
}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        by_mask = func.overloadpacket.__name__ in {"index", "index_put", "index_put_"} and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.overloadpacket.__name__ in _WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class FakeCapture:
    """Implements `Capture`; `recorded` counts, `replayed` counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], None]) -> Callable[[], object]:
        recorder = _Recorder()
        with recorder:
            compute()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay


class OnOneDevice(TorchDispatchMode):
    """Raises for operations on CPU tensors of a model on another device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                raise RuntimeError(f"{func} has a tensor on the CPU")
        return result
