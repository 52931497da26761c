"""Publications that wait for a broker: in order, bounded, kept until the broker has them.

A message of QoS 1 leaves when it was acknowledged and is sent again after a broken connection. One
of QoS 0 may be lost, and is the one that is left out when there is no room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from edgecosine.protocol.publication import Outgoing

logger = logging.getLogger(__name__)


class Outbox:
    """A queue with one taker. `put` never waits, so no session ever waits for a slow broker."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._num_taken = 0
        self._num_dropped = 0
        self._has_message = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def __repr__(self) -> str:
        return (
            f"<Outbox {len(self._waiting)} waiting, {len(self._in_flight)} in flight, "
            f"{self._num_dropped} dropped>"
        )

    def put(self, message: Outgoing) -> None:
        """Queue a message; in a full outbox QoS 0 is dropped, and at twice the limit the oldest."""
        if len(self) >= self._limit and message.qos == 0:
            self._drop()
            return
        if len(self._waiting) >= 2 * self._limit:
            self._waiting.popleft()
            self._drop()
        self._waiting.append(message)
        self._has_message.set()

    async def take(self) -> tuple[int, Outgoing]:
        """Wait for the next message; `settle` or `rewind` ends its time in flight."""
        while not self._waiting:
            self._has_message.clear()
            await self._has_message.wait()
        message = self._waiting.popleft()
        self._num_taken += 1
        self._in_flight[self._num_taken] = message
        return self._num_taken, message

    def settle(self, number: int) -> None:
        """The broker has message `number`."""
        self._in_flight.pop(number, None)

    def rewind(self) -> None:
        """The connection broke: what was in flight with QoS 1 is sent again, in its old order."""
        again = [message for message in self._in_flight.values() if message.qos]
        self._in_flight.clear()
        self._waiting.extendleft(reversed(again))
        if self._waiting:
            self._has_message.set()

    def _drop(self) -> None:
        self._num_dropped += 1
        if self._num_dropped & (self._num_dropped - 1) == 0:
            logger.warning("outbox is full, messages dropped=%d", self._num_dropped)
