"""The clock of a node's actors, in seconds from an arbitrary start.

It is a variable of the context, so that a simulation can put virtual time in its place. Threads of
engines start without a context and keep the real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar

clock: ContextVar[Callable[[], float]] = ContextVar("clock", default=time.perf_counter)


def now() -> float:
    """The time now."""
    return clock.get()()
