"""A bounded queue of received messages that is fair among senders.

Messages are taken in order of arrival, except those of a sender that exceeds its share by more than
a burst (start-time fair queueing of Goyal, Vin and Cheng, 1996, by messages and bytes). When the
queue is full, the message that would be taken last is dropped, QoS 0 first.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgecosine.protocol.api.mqtt_message import Incoming, Qos

MAX_MESSAGES: Final = 10_000
MAX_BYTES: Final = 32 << 20
_BYTES_PER_MESSAGE: Final = 4096
"""Payload bytes that cost as much as a message itself."""
_BURST: Final = 128.0
"""Cost by which a sender may exceed its share."""


@dataclass(slots=True)
class _Lane:
    """The waiting messages of one sender."""

    last: float
    """Virtual time of the last one."""
    count: int = 0


class Inbox:
    """A queue with one consumer.

    `lane` gives the sender from topic, payload and user property `client`. `on_drop` receives each
    dropped message of QoS 1, and None for one of QoS 0.
    """

    def __init__(
        self,
        *,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
        lane: Callable[[str, bytes | bytearray, str | None], str] = lambda *_: "",
        on_drop: Callable[[Incoming | None], None] = lambda _: None,
    ) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._lane, self._on_drop = lane, on_drop
        self._waiting: list[tuple[float, int, Qos, str, Incoming]] = []
        """Sorted by negative virtual time and number: the next message is the last entry."""
        self._lanes: dict[str, _Lane] = {}
        self._now = 0.0
        self._number = self._num_bytes = self._num_qos_0 = 0
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Inbox {len(self)} waiting of {len(self._lanes)} senders>"

    def put(self, message: Incoming, qos: Qos) -> None:
        """Add a message; drop messages while the inbox is over its limits."""
        name = self._lane(message.topic, message.payload, message.client)
        lane = self._lanes.setdefault(name, _Lane(self._now))
        virtual_time = self._virtual_time(lane, message.payload)
        lane.last = max(lane.last, self._now) + _cost(message.payload)
        lane.count += 1
        self._number += 1
        self._num_bytes += len(message.payload)
        self._num_qos_0 += qos == 0
        insort(self._waiting, (-virtual_time, -self._number, qos, name, message))
        while len(self._waiting) > self._max_messages or self._num_bytes > self._max_bytes:
            self._evict()
        self._arrived.set()

    def has_room(self, num_bytes: int) -> bool:
        """Whether one more message fits without dropping another one."""
        is_short = len(self._waiting) < self._max_messages
        return is_short and self._num_bytes + num_bytes <= self._max_bytes

    def wants(self, topic: str, payload: bytes | bytearray) -> bool:
        """Whether a message of QoS 0 would be kept in a full inbox: it would not be taken last."""
        lane = self._lanes.get(self._lane(topic, payload, None)) or _Lane(self._now)
        last, _, qos, *_ = self._waiting[self._last()]
        return qos == 0 and self._virtual_time(lane, payload) < -last

    def leave_out(self) -> None:
        """Record the drop of an unwanted message of QoS 0."""
        self._on_drop(None)

    def take(self) -> Incoming | None:
        """The next message; None if the inbox is empty."""
        if not self._waiting:
            return None
        at, *_, message = self._waiting[-1]
        self._now = -at
        self._remove(-1)
        return message

    async def arrival(self) -> None:
        """Wait for a message or a call of `wake`."""
        if not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()

    def wake(self) -> None:
        """Wake the consumer."""
        self._arrived.set()

    def clear(self) -> None:
        """Drop all messages; the broker sends unacknowledged ones again."""
        self._waiting.clear()
        self._lanes.clear()
        self._num_bytes = self._num_qos_0 = 0

    def _virtual_time(self, lane: _Lane, payload: bytes | bytearray) -> float:
        """Virtual time of the lane's next message."""
        return max(self._now, lane.last + _cost(payload) - _BURST)

    def _last(self) -> int:
        """Index of the message that is dropped first."""
        if not self._num_qos_0:
            return 0
        return next(n for n, (_, _, qos, *_) in enumerate(self._waiting) if qos == 0)

    def _evict(self) -> None:
        number = self._last()
        _, _, qos, name, message = self._waiting[number]
        self._lanes[name].last -= _cost(message.payload)
        self._remove(number)
        self._on_drop(message if qos else None)

    def _remove(self, number: int) -> None:
        _, _, qos, name, message = self._waiting.pop(number)
        self._num_qos_0 -= qos == 0
        self._num_bytes -= len(message.payload)
        lane = self._lanes[name]
        lane.count -= 1
        if not lane.count:
            del self._lanes[name]


def _cost(payload: bytes | bytearray) -> float:
    return 1.0 + len(payload) / _BYTES_PER_MESSAGE
