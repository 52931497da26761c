"""A bounded send queue: in order, with messages kept until the broker acknowledges them.

Messages of QoS 1, such as final messages, are never dropped, so their producers wait for `room`
first. A retained message replaces an older one on its topic. Messages of QoS 0, such as stream
parts, are dropped when the queue is full: the final message has the whole text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edgecosine.protocol.api.mqtt_message import Outgoing

logger = logging.getLogger(__name__)

MAX_MESSAGES = 10_000
MAX_BYTES = 16 << 20


class Outbox:
    """A queue with one consumer. `put` never waits, so a slow broker delays no session."""

    def __init__(
        self,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._on_drop = on_drop
        self._waiting: dict[int, Outgoing] = {}
        """By number, in sending order."""
        self._retained: dict[str, int] = {}
        """Numbers of waiting retained messages, by topic."""
        self._in_flight: dict[int, Outgoing] = {}
        self._alone_until = 0
        """Messages up to this number are sent one at a time after a lost connection."""
        self._last_number = 0
        self._num_bytes = 0
        self._num_dropped = 0
        self._may_leave = asyncio.Event()
        self._has_left = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def __repr__(self) -> str:
        return (
            f"<Outbox {len(self._waiting)} waiting, {len(self._in_flight)} in flight, "
            f"{self._num_dropped} dropped>"
        )

    @property
    def is_full(self) -> bool:
        """Whether messages of QoS 0 are dropped."""
        return len(self) >= self._max_messages or self._num_bytes >= self._max_bytes

    async def room(self) -> None:
        """Wait until the outbox is not full."""
        while self.is_full:
            self._has_left.clear()
            await self._has_left.wait()

    def put(self, message: Outgoing) -> None:
        """Queue a message; a full outbox drops QoS 0."""
        if message.retain and (older := self._retained.pop(message.topic, None)) is not None:
            self._forget(self._waiting.pop(older))
        if message.qos == 0 and self.is_full:
            self._drop()
            return
        self._last_number += 1
        self._add(self._last_number, message)

    async def take(self) -> tuple[int, Outgoing]:
        """Wait for the next message and its number; it is in flight until `settle` or `rewind`."""
        while not self._waiting or self._is_held:
            self._may_leave.clear()
            await self._may_leave.wait()
        number, message = next(iter(self._waiting.items()))
        del self._waiting[number]
        if self._retained.get(message.topic) == number:
            del self._retained[message.topic]
        self._in_flight[number] = message
        return number, message

    def settle(self, number: int) -> None:
        """Remove message `number`, which the broker has answered."""
        message = self._in_flight.pop(number, None)
        if message is not None:
            self._forget(message)
            self._may_leave.set()

    def lose(self) -> Outgoing | None:
        """After a lost connection, queue the QoS 1 messages in flight again, to be sent one at a
        time. Returns the message that was alone in flight, or None."""
        in_flight = {number: each for number, each in self._in_flight.items() if each.qos}
        self._alone_until = max(in_flight, default=self._alone_until)
        self.rewind()
        return next(iter(in_flight.values())) if len(in_flight) == 1 else None

    def give_up(self, message: Outgoing) -> None:
        """Remove a waiting message, or a retained one that replaced it."""
        for number, each in self._waiting.items():
            if each == message or (message.retain and each.topic == message.topic):
                del self._waiting[number]
                if self._retained.get(each.topic) == number:
                    del self._retained[each.topic]
                self._forget(each)
                return

    def rewind(self) -> None:
        """Queue the QoS 1 messages in flight again, in their old order."""
        later, self._waiting = self._waiting, {}
        in_flight, self._in_flight = self._in_flight, {}
        self._retained.clear()
        self._num_bytes = 0
        for number, message in (*in_flight.items(), *later.items()):
            if message.qos or number in later:
                if message.retain and (older := self._retained.pop(message.topic, None)):
                    self._forget(self._waiting.pop(older))
                self._add(number, message)
        self._has_left.set()

    @property
    def _is_held(self) -> bool:
        """Whether a message that is sent alone is in flight, or is next while others are."""
        return bool(self._in_flight) and (
            min(*self._in_flight, next(iter(self._waiting))) <= self._alone_until
        )

    def _add(self, number: int, message: Outgoing) -> None:
        self._waiting[number] = message
        self._num_bytes += message.num_bytes
        if message.retain:
            self._retained[message.topic] = number
        self._may_leave.set()

    def _forget(self, message: Outgoing) -> None:
        self._num_bytes -= message.num_bytes
        self._has_left.set()

    def _drop(self) -> None:
        self._num_dropped += 1
        self._on_drop()
        if self._num_dropped & (self._num_dropped - 1) == 0:
            logger.warning("outbox is full: dropped=%d", self._num_dropped)
