"""CUDA graphs: a forward pass is recorded once per shape and replayed as one launch.

A recording must not contain waits for the device, copies from pageable host memory or allocations
outside the pool of the graph (NVIDIA, "CUDA Graph constraints"). The warm-up runs with torch's
check for synchronising operations, so a model that breaks this fails before the capture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

Compute = Callable[[], None]
"""Computes from static tensors into static tensors."""
Capture = Callable[[Compute], Callable[[], object]]
"""Records a computation and returns the function that replays it; raises RuntimeError."""


def capture_for(device: torch.device) -> Capture | None:
    """The recorder for `device`; None on a CPU or when `EDGECOSINE_GRAPHS=off`."""
    if device.type != "cuda":
        return None
    if os.environ.get("EDGECOSINE_GRAPHS", "on").lower() in {"off", "0", "no"}:
        logger.info("CUDA graphs off: switched_off_by=%s", "EDGECOSINE_GRAPHS")
        return None
    return CudaCapture(device)


def use_own_stream(device: torch.device) -> None:
    """Run the following work of this thread on `device` in a new stream."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class CudaCapture:
    """Records on a side stream, all graphs in one memory pool.

    Graphs that share a pool overwrite each other's intermediate tensors, so computations write
    their results into tensors allocated outside of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Callable[[], object]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream of the caller when the inner one raises.
        with torch.cuda.stream(self._stream):
            _without_waiting(compute)
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                # Other threads of the process may allocate at the same time.
                capture_error_mode="thread_local",
            ):
                compute()
        current.wait_stream(self._stream)
        return graph.replay


def _without_waiting(compute: Compute) -> None:
    """Run `compute`; RuntimeError when an operation of it waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute()
    finally:
        torch.cuda.set_sync_debug_mode(before)
