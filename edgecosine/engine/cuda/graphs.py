"""CUDA graphs: a pass recorded once per shape and replayed as one launch.

What a recording may not hold (NVIDIA, "CUDA Graph constraints"): waits for the device, copies from
ordinary host memory, allocations outside the graph's pool. Whether a model's forward keeps to that
is tried, not assumed: the warm-up runs with torch's check for synchronising operations on, which
fails before a capture is spoilt.
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
"""Records a computation and gives what runs it again; raises RuntimeError when it cannot."""


def capture_for(device: torch.device) -> Capture | None:
    """How to record on `device`; None on a CPU or when `EDGECOSINE_GRAPHS=off`."""
    if device.type != "cuda":
        return None
    if os.environ.get("EDGECOSINE_GRAPHS", "on").lower() in {"off", "0", "no"}:
        logger.info("no CUDA graphs: switched off by EDGECOSINE_GRAPHS")
        return None
    return CudaCapture(device)


def use_own_stream(device: torch.device) -> None:
    """What this thread does on `device` from now on goes to a stream of its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class CudaCapture:
    """Records on a side stream, all graphs in one memory pool.

    Graphs that share a pool overwrite each other's intermediate tensors, so none may keep a result
    there: computations write into tensors made outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Callable[[], object]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        # The outer context brings the caller's stream back when the inner one ends in an error.
        with torch.cuda.stream(self._stream):
            _without_waiting(compute)
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                # Other threads of the process may allocate meanwhile.
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
