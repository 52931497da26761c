"""What one peer may cost this node: messages that it was asked for, and a share of the loop's time.

Decisions: the link counts, reads and keeps the clock. A peer earns a message by each request that
it is sent, and a few by each heartbeat; a peer that sends more is flooding. Requests, which nobody
asks for, are bounded by the time that they take: beyond it the socket is left unread, so that the
peer's own sending stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgecosine.backoff import Backoff

BURST_MESSAGES: Final = 256
"""Messages that a peer may send without being asked: those of the handshake, and releases."""
MESSAGES_PER_HEARTBEAT: Final = 16
"""A ping, a pong, and some more where a heartbeat here is longer than there."""
MAX_EARNED_MESSAGES: Final = 4096
"""Answers that may be outstanding: what was never answered is not saved up for a flood."""
LOOP_SHARE: Final = 0.5
"""Share of the event loop's time that the messages of one link may take for long."""
BURST_S: Final = 0.05
"""Time that they may take at once."""
DEAREST_S: Final = 0.02
"""A message that took longer met a process that was itself kept waiting, and is not to blame."""
MAX_JOINS: Final = 32
JOINS_WITHIN_S: Final = 60.0
"""A peer that opens links more often than that floods this node with them."""
MAX_BANS: Final = 1024

_BAN: Final = Backoff(first_s=60.0, longest_s=3600.0)


class PeerBudget:
    """The messages that a peer may still send."""

    def __init__(self) -> None:
        self._left = BURST_MESSAGES

    def __repr__(self) -> str:
        return f"<PeerBudget {self._left} messages>"

    def earn(self, messages: int = 1) -> None:
        """The peer was asked for so many messages."""
        self._left = min(MAX_EARNED_MESSAGES, self._left + messages)

    def beat(self) -> None:
        """A heartbeat has passed."""
        self._left = max(self._left, min(BURST_MESSAGES, self._left + MESSAGES_PER_HEARTBEAT))

    def spend(self) -> bool:
        """One more message has come; whether it is one of those that the peer may send."""
        self._left -= 1
        return self._left >= 0


class LoopShare:
    """The event loop's time that a link's messages took of late."""

    def __init__(self) -> None:
        self._debt_s = 0.0
        self._at = 0.0

    def spend(self, seconds: float, now: float) -> float:
        """A message took so many seconds until `now` (of any steady clock); gives the seconds for
        which to read no more."""
        paid_s = LOOP_SHARE * (now - self._at)
        self._debt_s = max(0.0, self._debt_s - paid_s) + min(seconds, DEAREST_S)
        self._at = now
        return self._debt_s / LOOP_SHARE if self._debt_s > BURST_S else 0.0


@dataclass(frozen=True, slots=True)
class _Ban:
    times: int
    until: float
    reason: str


class PeerBans:
    """Peers that flooded this node, by node id; each time they are kept out for longer."""

    def __init__(self) -> None:
        self._bans: dict[str, _Ban] = {}
        """The newest last."""
        self._joins: dict[str, tuple[int, float]] = {}
        """How often a peer came since when; the newest last."""

    def __repr__(self) -> str:
        return f"<PeerBans [{len(self._bans)} peers]>"

    def ban(self, node_id: str, reason: str, now: float) -> float:
        """Keep a peer out from `now` on; gives the seconds."""
        known = self._bans.pop(node_id, None)
        times = 1 + known.times if known else 1
        seconds = _BAN.delay_s(times, chance=0.0)
        self._bans[node_id] = _Ban(times, now + seconds, f"{reason}: kept out for {seconds:.0f} s")
        if len(self._bans) > MAX_BANS:
            del self._bans[next(iter(self._bans))]
        return seconds

    def objection(self, node_id: str, now: float) -> str | None:
        """Why the peer is kept out at `now`; None when it is not."""
        ban = self._bans.get(node_id)
        return ban.reason if ban and now < ban.until else None

    def may_come(self, node_id: str, now: float) -> bool:
        """A link of the peer has come; whether it is one of those that it may open."""
        count, since = self._joins.pop(node_id, (0, now))
        if now - since >= JOINS_WITHIN_S:
            count, since = 0, now
        self._joins[node_id] = count + 1, since
        if len(self._joins) > MAX_BANS:
            del self._joins[next(iter(self._joins))]
        return count < MAX_JOINS
