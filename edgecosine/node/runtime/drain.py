"""Going away in order: nothing new is taken, what is at work is finished, then the node ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from edgecosine.config import DRAIN_TIMEOUT_S
from edgecosine.errors import EdgecosineError

logger = logging.getLogger(__name__)


class Drained(EdgecosineError):
    """The node was told to go, and nothing is at work any more, or its time is over."""


class Drain:
    """One node's leave. A node that has not said how it winds down has nothing at work."""

    def __init__(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._requested = asyncio.Event()
        self._wind_down: Callable[[], Awaitable[None]] | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the node is to go."""
        return self._requested.is_set()

    def request(self) -> bool:
        """Let the node go; False when it was told before."""
        is_first = not self.is_requested
        self._requested.set()
        return is_first

    def by(self, wind_down: Callable[[], Awaitable[None]]) -> None:
        """How it is done: `wind_down` returns when nothing is at work; it may be cancelled."""
        self._wind_down = wind_down

    async def run(self) -> NoReturn:
        """Wait for the request, wind down within the time that there is.

        Raises Drained.
        """
        await self._requested.wait()
        if self._wind_down is not None:
            logger.info("draining: grace_s=%g", self._timeout_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._wind_down()
            except TimeoutError:
                raise Drained(
                    f"what was at work did not end within {self._timeout_s:g} s"
                ) from None
        raise Drained("nothing is at work")
