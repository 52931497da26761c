"""What heartbeats tell about a link: its round-trip time, and whether anybody is there.

Decisions: the link sends, hears and keeps the clock. Silence is counted in beats and not in
seconds, so that a node that was itself stopped for a while does not blame its peers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgecosine.errors import RemoteProtocolError

MAX_UNANSWERED_PINGS: Final = 16
_RTT_GAIN: Final = 1 / 8
_JITTER_GAIN: Final = 1 / 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Patience on a link, in seconds."""

    heartbeat_s: float = 1.0
    silent_heartbeats: int = 3
    handshake_s: float = 5.0
    linger_s: float = 1.0
    unanswered_heartbeats: int = 30
    """Who sends bytes, but answers no ping for so long, is dropped: it may never end a message."""


DEFAULT_TIMING: Final = Timing()


class Heartbeat:
    """Pings of one link, and the smoothed times of their answers.

    rtt_s     moving average of the round-trip time in seconds; infinite before the first answer
    jitter_s  moving average of its deviation in seconds
    num_unanswered  intervals since a ping was answered
    """

    def __init__(self) -> None:
        self.num_unanswered = 0
        self.rtt_s = math.inf
        self.jitter_s = 0.0
        self._sent_at: dict[int, float] = {}
        self._next_number = 0
        self._silent_beats = 0
        self._has_heard = False

    def heard(self) -> None:
        """Something came from the peer, whatever it was."""
        self._has_heard = True

    def beat(self) -> int:
        """One interval is over; gives the number of intervals in a row without a sound."""
        self._silent_beats = 0 if self._has_heard else self._silent_beats + 1
        self._has_heard = False
        self.num_unanswered += 1
        return self._silent_beats

    def next_ping(self, now: float) -> int:
        """Number of the ping to send at `now`."""
        number = self._next_number
        self._next_number += 1
        self._sent_at[number] = now
        if len(self._sent_at) > MAX_UNANSWERED_PINGS:
            del self._sent_at[min(self._sent_at)]
        return number

    def take_pong(self, number: int, now: float) -> None:
        """Learn from the answer to a ping.

        Raises RemoteProtocolError when there was no such ping.
        """
        if number >= self._next_number:
            raise RemoteProtocolError(f"the peer sent pong {number} to a ping that was never sent")
        self.num_unanswered = 0
        sent_at = self._sent_at.pop(number, None)
        if sent_at is None:
            return
        sample = now - sent_at
        if math.isinf(self.rtt_s):
            self.rtt_s = sample
            return
        self.jitter_s += _JITTER_GAIN * (abs(sample - self.rtt_s) - self.jitter_s)
        self.rtt_s += _RTT_GAIN * (sample - self.rtt_s)
