"""Limits on one peer: the messages that it may send, and its share of the event loop's time.

The link does the counting, reading and timing. A peer may send one message for each request that it
receives, and a few for each heartbeat; a peer that sends more is flooding. Draft requests are
limited by the time that they take: beyond it the socket is left unread, which blocks the peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgecosine.backoff import Backoff

BURST_MESSAGES: Final = 256
"""Messages that a peer may send unrequested: those of the handshake, and releases."""
MESSAGES_PER_HEARTBEAT: Final = 16
"""A ping, a pong, and spare ones for a peer whose heartbeat is shorter."""
MAX_EARNED_MESSAGES: Final = 4096
"""Limit of unused allowance, so that unanswered requests cannot pay for a flood."""
LOOP_SHARE: Final = 0.5
"""Share of the event loop's time that one link's messages may take in the long run."""
BURST_S: Final = 0.05
"""Time that they may take in one burst."""
MAX_CHARGE_S: Final = 0.02
"""Charge of one message at most: longer means that the process itself was stalled."""
MAX_JOINS: Final = 32
JOINS_WITHIN_S: Final = 60.0
"""A peer that opens more than MAX_JOINS links in this time is flooding."""
MAX_BANS: Final = 1024

_BAN: Final = Backoff(first_s=60.0, longest_s=3600.0)


class PeerBudget:
    """Number of messages that a peer may still send."""

    def __init__(self) -> None:
        self._left = BURST_MESSAGES

    def __repr__(self) -> str:
        return f"<PeerBudget {self._left} messages>"

    def earn(self, messages: int = 1) -> None:
        """Allow this many more messages."""
        self._left = min(MAX_EARNED_MESSAGES, self._left + messages)

    def beat(self) -> None:
        """Allow the messages of one more heartbeat interval."""
        self._left = max(self._left, min(BURST_MESSAGES, self._left + MESSAGES_PER_HEARTBEAT))

    def spend(self) -> bool:
        """Count a received message; returns whether it was allowed."""
        self._left -= 1
        return self._left >= 0


class LoopShare:
    """Time that a link's messages have recently taken on the event loop."""

    def __init__(self) -> None:
        self._debt_s = 0.0
        self._at = 0.0

    def spend(self, seconds: float, now: float) -> float:
        """Charge a message that took `seconds` and ended at `now` (of any monotonic clock).

        Returns the seconds for which to pause reading.
        """
        paid_s = LOOP_SHARE * (now - self._at)
        self._debt_s = max(0.0, self._debt_s - paid_s) + min(seconds, MAX_CHARGE_S)
        self._at = now
        return self._debt_s / LOOP_SHARE if self._debt_s > BURST_S else 0.0


@dataclass(frozen=True, slots=True)
class _Ban:
    times: int
    until: float
    reason: str


class PeerBans:
    """Peers that flooded this node, by node id; each ban of a peer is longer."""

    def __init__(self) -> None:
        self._bans: dict[str, _Ban] = {}
        """Newest last."""
        self._joins: dict[str, tuple[int, float]] = {}
        """Number of links since a time, by peer; newest last."""

    def __repr__(self) -> str:
        return f"<PeerBans [{len(self._bans)} peers]>"

    def ban(self, node_id: str, reason: str, now: float) -> float:
        """Ban a peer from `now` on; returns the duration in seconds."""
        known = self._bans.pop(node_id, None)
        times = 1 + known.times if known else 1
        seconds = _BAN.delay_s(times, chance=0.0)
        self._bans[node_id] = _Ban(times, now + seconds, f"{reason}: banned for {seconds:.0f} s")
        if len(self._bans) > MAX_BANS:
            del self._bans[next(iter(self._bans))]
        return seconds

    def objection(self, node_id: str, now: float) -> str | None:
        """Why the peer is banned at `now`; None if it is not."""
        ban = self._bans.get(node_id)
        return ban.reason if ban and now < ban.until else None

    def may_join(self, node_id: str, now: float) -> bool:
        """Count a link opened by the peer; returns whether it was allowed."""
        count, since = self._joins.pop(node_id, (0, now))
        if now - since >= JOINS_WITHIN_S:
            count, since = 0, now
        self._joins[node_id] = count + 1, since
        if len(self._joins) > MAX_BANS:
            del self._joins[next(iter(self._joins))]
        return count < MAX_JOINS
