"""Starts the ranks of a tensor-parallel model and loads one share of it in each."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from edgecosine.engine.loading.device import resolve_device
from edgecosine.engine.loading.load_model import load_model
from edgecosine.engine.loading.load_plan import plan_load, read_config
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.tensor_parallel.messages import (
    BeginServing,
    StartWorker,
    WorkerReady,
    WorkerStarted,
    WorkerWaiting,
)
from edgecosine.engine.tensor_parallel.model import (
    HOST,
    START_TIMEOUT_S,
    ParallelModel,
    end_ranks,
    failure_of,
    join_group,
)
from edgecosine.engine.tensor_parallel.sharding import check_shards
from edgecosine.engine.tensor_parallel.workers import Workers
from edgecosine.errors import ModelUnsupported

LOAD_TIMEOUT_S: Final = 1800.0
FORWARD_TIMEOUT_S: Final = 120.0
"""Most time between ranks within a forward pass."""


def load_over_ranks(
    options: LoadOptions, *, forward_timeout_s: float = FORWARD_TIMEOUT_S
) -> tuple[ParallelModel, Loaded, int]:
    """Start the other ranks and load a share of the model in each; also returns the size of a slot.

    Raises EngineError that names the failed rank, or the errors of `load_model`.
    """
    size = options.tensor_parallel
    # `check_shards` explains better why an explicit device cannot be used.
    asked = resolve_device("auto") if options.device == "auto" else options.device
    device = check_shards(options, read_config(options), asked)
    # What no rank could load is refused before any of them is started.
    plan_load(replace(options, device=device))
    if dist.is_initialized():
        raise ModelUnsupported("this process already has a tensor-parallel model")
    threads = options.threads or max(1, torch.get_num_threads() // size)
    options = replace(options, threads=threads)
    _stay_on_loopback()
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        HOST, port, size, is_master=True, wait_for_workers=False,
        timeout=timedelta(seconds=START_TIMEOUT_S), master_listen_fd=listener.detach(),
    )  # fmt: skip
    first, *others = (
        StartWorker(
            replace(options, device=_device_of(device, rank)), rank, size, port, forward_timeout_s
        )
        for rank in range(size)
    )
    ranks = Workers(others)

    def barrier() -> None:
        ranks.expect(WorkerWaiting, LOAD_TIMEOUT_S)
        ranks.send(BeginServing())

    try:
        ranks.expect(WorkerStarted, START_TIMEOUT_S)
        join_group(first, store)
        model, loaded, slot_size = load_model(first.options, barrier=barrier)
        ranks.expect(WorkerReady, LOAD_TIMEOUT_S)
    except Exception as error:
        failure = failure_of(error, ranks)
        end_ranks(ranks)
        if failure is error:
            raise
        raise failure from error
    return ParallelModel(model, ranks), loaded, slot_size


def _device_of(kind: str, rank: int) -> str:
    """The device of a rank: ranks share the processor; each has a GPU of its own."""
    return kind if kind == "cpu" else f"{kind}:{rank}"


def _stay_on_loopback() -> None:
    name = "lo" if sys.platform == "linux" else "lo0"
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, name)
