"""A lock between the processes of one machine that write the same directory."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Context in which no other process is in that of this directory.

    `on_wait` is called when another process has to be waited for. Raises OSError when the directory
    cannot be written.
    """
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
