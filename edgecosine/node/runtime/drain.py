"""Graceful shutdown: a node refuses new work, finishes active work, and then ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from edgecosine.config import DRAIN_TIMEOUT_S
from edgecosine.errors import EdgecosineError

logger = logging.getLogger(__name__)


class Drained(EdgecosineError):
    """The node was asked to drain, and is idle now or has run out of time."""


class Drain:
    """One node's shutdown. A node without a `by` call counts as idle."""

    def __init__(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._requested = asyncio.Event()
        self._wind_down: Callable[[], Awaitable[None]] | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the node has to drain."""
        return self._requested.is_set()

    def request(self) -> bool:
        """Request the shutdown. Returns False if it was requested before."""
        is_first = not self.is_requested
        self._requested.set()
        return is_first

    def by(self, wind_down: Callable[[], Awaitable[None]]) -> None:
        """Set how to drain: `wind_down` returns when the node is idle, and may be cancelled."""
        self._wind_down = wind_down

    async def run(self) -> NoReturn:
        """Wait for the request, and drain within the time limit.

        Raises Drained.
        """
        await self._requested.wait()
        if self._wind_down is not None:
            logger.info("draining: grace_s=%g", self._timeout_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._wind_down()
            except TimeoutError:
                raise Drained(f"active work did not end within {self._timeout_s:g} s") from None
        raise Drained("the node is idle")
