"""Tensor parallelism: one target in N processes, each with a share of the heads and the weights.

transformers splits the model and reduces over torch.distributed (gloo on a CPU, nccl on GPUs). Rank
0 is this process: it handles works, trees and sampling, and sends the rows of each batch to the
others. All ranks run the batch, synchronised by the collectives inside the layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.tensor_parallel.messages import (
    CopySlots,
    MoveSlots,
    RunForward,
    StartWorker,
)
from edgecosine.engine.tensor_parallel.workers import Workers
from edgecosine.errors import EngineError

START_TIMEOUT_S: Final = 120.0
HOST: Final = "127.0.0.1"
_COLUMNS: Final = 6

Result = TypeVar("Result")


class ParallelModel:
    """The `ForwardModel` of rank 0, which sends each call to the other ranks. Not thread-safe.

    When a rank fails, this call and all later ones raise EngineError.
    """

    def __init__(self, model: ForwardModel, ranks: Workers) -> None:
        self._model, self._ranks = model, ranks
        self._failure: str | None = None
        self.close = weakref.finalize(self, end_ranks, ranks)
        """End the other ranks, at the latest when this process ends."""

    @property
    def slot_size(self) -> int:
        """KV positions of a slot, those for draft nodes included."""
        return self._model.slot_size

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights of this rank, and of its cache."""
        return self._model.held

    @property
    def pids(self) -> list[int]:
        """Process ids of the other ranks."""
        return self._ranks.pids

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows on all ranks; returns float32 logits [len(keep), vocabulary] of the rows
        numbered in `keep`, on the CPU."""
        order = encode_batch(rows, keep)

        def run() -> torch.Tensor:
            self._ranks.send(order)
            return self._model.forward(rows, keep)

        return self._guarded(run)

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy keys and values from `source` to `target` KV positions of a slot, on all ranks."""
        if list(source) == list(target):
            return

        def run() -> None:
            self._ranks.send(MoveSlots(slot, list(source), list(target)))
            self._model.move(slot, source, target)

        self._guarded(run)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot, on all ranks."""

        def run() -> None:
            self._ranks.send(CopySlots(source, target, start, end))
            self._model.copy(source, target, start, end)

        self._guarded(run)

    def clear(self, slot: int) -> None:
        """Does nothing: ranks do not run padded batches."""

    def _guarded(self, run: Callable[[], Result]) -> Result:
        if self._failure is not None:
            raise EngineError(self._failure)
        try:
            return run()
        except Exception as error:
            # The ranks are no longer synchronised, whichever failed first.
            failure = failure_of(error, self._ranks)
            self._failure = str(failure) or type(failure).__name__
            self.close()
            if failure is error:
                raise
            raise failure from error


def join_group(start: StartWorker, store: TCPStore | None = None) -> None:
    """Join the process group of the ranks; without `store`, connect to that of rank 0."""
    timeout = timedelta(seconds=start.timeout_s)
    if store is None:
        store = TCPStore(HOST, start.port, start.size, timeout=timedelta(seconds=START_TIMEOUT_S))
    if start.options.device == "cpu":
        dist.init_process_group(
            "gloo", store=store, rank=start.rank, world_size=start.size, timeout=timeout
        )
        return
    device = torch.device(start.options.device)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl", store=store, rank=start.rank, world_size=start.size, timeout=timeout,
        device_id=device,
    )  # fmt: skip


def encode_batch(rows: BatchRows, keep: Sequence[int]) -> RunForward:
    """The message for a batch."""
    columns = (
        rows.tokens,
        rows.positions,
        rows.slot,
        rows.kv_position,
        rows.length,
        rows.path_length,
    )
    table = torch.cat([torch.stack([c.int() for c in columns], 1), rows.path], 1)
    return RunForward(table.numpy().tobytes(), len(table), list(keep))


def decode_batch(order: RunForward) -> BatchRows:
    """The batch of a message."""
    table = torch.frombuffer(bytearray(order.table), dtype=torch.int32).view(order.num_rows, -1)
    tokens, positions, slot, kv_position, length, path_length = (
        column.contiguous() for column in table[:, :_COLUMNS].unbind(1)
    )
    path = table[:, _COLUMNS:].contiguous()
    return BatchRows(tokens.long(), positions.long(), slot, kv_position, length, path, path_length)


def failure_of(error: Exception, ranks: Workers) -> Exception:
    """The error to raise: a broken collective means that a rank failed, see `explain`."""
    is_collective = isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError)
    return ranks.explain(error) if is_collective else error


def end_ranks(ranks: Workers) -> None:
    """End the processes and leave the group."""
    ranks.close()
    if dist.is_initialized():
        dist.destroy_process_group()
