"""`python -m edgecosine.engine.loading.rank_process`: a rank above 0 of a tensor-parallel target.

Rank 0 starts the process, with a socket to rank 0 as standard input. The process runs each batch of
rank 0 on its own share of the weights and the cache, and ends with rank 0.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from contextlib import suppress
from typing import NoReturn

from edgecosine.engine.tensor_parallel.messages import (
    BeginServing,
    CopySlots,
    MoveSlots,
    RunForward,
    StartWorker,
    WorkerChannel,
    WorkerFailed,
    WorkerOrder,
    WorkerReady,
    WorkerStarted,
    WorkerWaiting,
)

Orders = queue.SimpleQueue[WorkerOrder]


def main() -> NoReturn:
    """Run batches until rank 0 ends."""
    channel = WorkerChannel(socket.socket(fileno=0))
    orders = Orders()
    threading.Thread(target=_listen, args=(channel, orders), daemon=True).start()
    try:
        start = orders.get()
        assert isinstance(start, StartWorker)
        _serve(start, channel, orders)
    except BaseException as error:  # noqa: BLE001 - rank 0 reports it
        with suppress(OSError):
            channel.send(WorkerFailed(f"{type(error).__name__}: {error}"[:2000]))
    # Threads of torch.distributed may still wait for ranks that have ended.
    os._exit(1)


def _listen(channel: WorkerChannel, orders: Orders) -> None:
    """Queue orders; end the process when rank 0 closes, even if the main thread is blocked."""
    with suppress(BaseException):
        while True:
            order = channel.receive()
            assert isinstance(order, WorkerOrder)
            orders.put(order)
    os._exit(0)


def _serve(start: StartWorker, channel: WorkerChannel, orders: Orders) -> None:
    # Imported here so that a failing import is reported to rank 0.
    from edgecosine.engine.loading.load_model import load_model
    from edgecosine.engine.tensor_parallel.model import decode_batch, join_group

    def barrier() -> None:
        channel.send(WorkerWaiting())
        assert isinstance(orders.get(), BeginServing)

    channel.send(WorkerStarted())
    join_group(start)
    model, _, _ = load_model(start.options, barrier=barrier)
    channel.send(WorkerReady())
    while True:
        match orders.get():
            case RunForward() as order:
                model.forward(decode_batch(order), order.keep)
            case MoveSlots(slot, source, target):
                model.move(slot, source, target)
            case CopySlots(origin, destination, first, end):
                model.copy(origin, destination, first, end)
            case order:
                raise ValueError(f"unexpected {order}")


if __name__ == "__main__":
    main()
