"""Round-trip time and liveness of a link, from heartbeats.

The link does the sending and the timing. Silence is counted in heartbeats and not in seconds, so
that a node that was itself suspended does not drop its peers.
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
    """Timeouts of a link, in seconds or in heartbeats."""

    heartbeat_s: float = 1.0
    silent_heartbeats: int = 3
    handshake_s: float = 5.0
    linger_s: float = 1.0
    unanswered_heartbeats: int = 30
    """A peer that sends bytes but answers no ping: its message may never end."""


DEFAULT_TIMING: Final = Timing()


class Heartbeat:
    """Pings of one link, and the smoothed times of their replies.

    rtt_s     moving average of the round-trip time in seconds; infinite before the first reply
    jitter_s  moving average of its absolute deviation in seconds
    num_unanswered  intervals since a ping was answered
    """

    def __init__(self) -> None:
        self.num_unanswered = 0
        self.rtt_s = math.inf
        self.jitter_s = 0.0
        self._sent_at: dict[int, float] = {}
        self._next_number = 0
        self._silent_beats = 0
        self._has_received = False

    def received(self) -> None:
        """Record that bytes of any kind arrived."""
        self._has_received = True

    def beat(self) -> int:
        """End an interval; returns the number of consecutive intervals without a byte."""
        self._silent_beats = 0 if self._has_received else self._silent_beats + 1
        self._has_received = False
        self.num_unanswered += 1
        return self._silent_beats

    def next_ping(self, now: float) -> int:
        """Returns the number of the ping to send at `now`."""
        number = self._next_number
        self._next_number += 1
        self._sent_at[number] = now
        if len(self._sent_at) > MAX_UNANSWERED_PINGS:
            del self._sent_at[min(self._sent_at)]
        return number

    def record_pong(self, number: int, now: float) -> None:
        """Update the round-trip time with the reply to a ping.

        Raises RemoteProtocolError when no such ping was sent.
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
