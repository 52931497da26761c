"""Which message a broker refuses for good: it ends the connection whenever that one comes.

Pure; times are seconds of any steady clock. What is told: which message was alone on its way when a
connection ended, and what the broker has taken. Twice in a row is once too often, so that no
message can keep the others waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from edgecosine.protocol.api.mqtt_message import Outgoing

RETRY_S: Final = 60.0
"""After so long a retained message is tried again: the network may have been to blame."""
_MAX_TOPICS: Final = 64
_NOT_ITS_FAULT: Final = frozenset((137, 139, 141, 142, 152, 156, 157))
"""Reasons of MQTT 5 that no message is to blame for: busy, shutting down, silence, another
connection under our name, an administrator, another server."""


class RefusedMessages:
    """What one broker has refused."""

    def __init__(self) -> None:
        self._suspect: str | Outgoing | None = None
        self._topics: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Topics on which a retained message was refused, how long it was, and until when that
        counts."""

    def lost(self, alone: Outgoing | None, now: float, reason_code: int | None = None) -> bool:
        """A connection ended; whether to give up the message that was `alone` on its way then."""
        if alone is None or reason_code in _NOT_ITS_FAULT:
            return False
        # A newer retained message takes the place of the one before it, and its fault.
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
        """The broker has a message."""
        if self._suspect in (message, message.topic):
            self._suspect = None

    def objection(self, message: Outgoing, now: float) -> str | None:
        """Why not to send a retained message again that is told anew every now and then."""
        length, until = self._topics.get(message.topic, (0, now))
        if now >= until or len(message.payload) < length:
            return None
        return "the broker ended the connection for one like it"
