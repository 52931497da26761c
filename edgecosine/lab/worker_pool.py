"""Processes that share out a benchmark's simulations and end with it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def worker_pool(num_workers: int, niceness: int = 0) -> ProcessPoolExecutor:
    """A pool whose processes also end, amid their work, when this process is killed."""
    return ProcessPoolExecutor(num_workers, initializer=_begin, initargs=(niceness,))


def _begin(niceness: int) -> None:
    os.nice(niceness)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it runs in a worker"
    parent.join()
    os._exit(1)
