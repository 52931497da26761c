"""Detects messages for which a broker ends the connection, so that they cannot block others.

Pure; times are seconds of any monotonic clock. A message is given up when a connection ends twice
in a row with that message alone in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from edgecosine.protocol.api.mqtt_message import Outgoing

RETRY_S: Final = 60.0
"""Seconds after which a refused topic is tried again: the network may have been the cause."""
_MAX_TOPICS: Final = 64
_UNRELATED: Final = frozenset((137, 139, 141, 142, 152, 156, 157))
"""MQTT 5 reasons that no message causes: server busy, shutting down, keep-alive timeout, session
taken over, administrative action, another server."""


class RefusedMessages:
    """The refusals of one broker."""

    def __init__(self) -> None:
        self._suspect: str | Outgoing | None = None
        self._topics: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Topics with a refused retained message, its size in bytes, and the end of the refusal."""

    def lost(self, alone: Outgoing | None, now: float, reason_code: int | None = None) -> bool:
        """Record a lost connection; returns whether to give up the message `alone` in flight."""
        if alone is None or reason_code in _UNRELATED:
            return False
        # A newer retained message replaces an older one, and is suspected in its place.
        name = alone.topic if alone.retain else alone
        if name != self._suspect:
            self._suspect = name
            return False
        self._suspect = None
        if alone.retain:
            self._topics[alone.topic] = len(alone.payload), now + RETRY_S
            if len(self._topics) > _MAX_TOPICS:
                self._topics.popitem(last=False)
        return True

    def taken(self, message: Outgoing) -> None:
        """Record that the broker has accepted or refused a message."""
        if self._suspect in (message, message.topic):
            self._suspect = None

    def objection(self, message: Outgoing, now: float) -> str | None:
        """Why a renewed retained message must not be sent now; None if it may."""
        length, until = self._topics.get(message.topic, (0, now))
        if now >= until or len(message.payload) < length:
            return None
        return "the broker ended the connection for a similar message"
