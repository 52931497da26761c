"""The clocks of a node, in seconds from an arbitrary start.

`now` times sessions, drafts and forward passes. It is a context variable, so that a simulation can
substitute virtual time; engine threads start without a context and keep the real one.
`loop_time` is for deadlines and timers, which asyncio measures with it. Leases of other targets and
waits for the disk use `time.monotonic` instead: the loop's time stands still during one iteration,
even if the process is stopped within it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar

clock: ContextVar[Callable[[], float]] = ContextVar("clock", default=time.perf_counter)


def now() -> float:
    """Return the time of the current context."""
    return clock.get()()


def loop_time() -> float:
    """Return the time of the running event loop."""
    return asyncio.get_running_loop().time()
