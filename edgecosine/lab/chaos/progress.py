"""The progress of a chaos run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

STALLED_S: Final = 90.0
"""The run has stalled when no request ends for this long without a fault."""


class Progress:
    """Counts requests that have ended; `now` gives seconds since the run began."""

    def __init__(self, total: int, now: Callable[[], float]) -> None:
        self.total, self.now = total, now
        self.num_ended = 0
        self._has_ended = asyncio.Event()

    def __str__(self) -> str:
        minutes, seconds = divmod(int(self.now()), 60)
        return f"{minutes:02d}:{seconds:02d} {self.num_ended:4d}/{self.total} requests"

    def end(self) -> None:
        """Count one more ended request."""
        self.num_ended += 1
        self._has_ended.set()
        self._has_ended = asyncio.Event()

    async def reached(self, count: int) -> bool:
        """Wait until `count` requests have ended; returns False when the run has stalled."""
        while self.num_ended < count:
            try:
                async with asyncio.timeout(STALLED_S):
                    await self._has_ended.wait()
            except TimeoutError:
                return False
        return True
