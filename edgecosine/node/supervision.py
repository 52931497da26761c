"""Restarts what the weather ended, and nothing else: a bug ends the node, loudly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from edgecosine.discovery.backoff import Backoff
from edgecosine.errors import BrokerLost, EdgecosineError, LinkLost

Result = TypeVar("Result")

QUIET_S: Final = 60.0

WEATHER: Final[tuple[type[EdgecosineError], ...]] = (LinkLost, BrokerLost)

logger = logging.getLogger(__name__)


async def supervise(
    name: str,
    make: Callable[[], Awaitable[Result]],
    *,
    restart_on: tuple[type[BaseException], ...] = WEATHER,
    backoff: Backoff | None = None,
    quiet_s: float = QUIET_S,
) -> Result:
    """Await what `make` makes, anew after each ending named in `restart_on`, with growing pauses.

    A life of `quiet_s` seconds makes the next pause short again. Other exceptions propagate.
    """
    pauses = backoff or Backoff()
    clock = asyncio.get_running_loop().time
    attempts = 0
    while True:
        started_at = clock()
        try:
            return await make()
        except restart_on as error:
            attempts = 1 if clock() - started_at >= quiet_s else attempts + 1
            pause_s = pauses.delay_s(attempts)
            logger.warning(
                "restarting: name=%s attempt=%d pause_s=%.2f reason=%s",
                name, attempts, pause_s, error,
            )  # fmt: skip
        await asyncio.sleep(pause_s)
