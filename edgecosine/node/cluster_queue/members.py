"""The targets of one model: which of them are connected, may take requests, or are gone.

Pure. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from edgecosine.balance.rendezvous_hash import chosen
from edgecosine.protocol.api.claim_messages import Claim, MembershipState, MembershipStatus

GRACE_S: Final = 5.0
"""Time in which a lost target may return to its requests: the longest reconnection pause."""
FORGET_S: Final = 3600.0
"""Time after which a lost target is forgotten."""


@dataclass(slots=True)
class _Peer:
    """Another target, whose session started at `since` and which was lost at `lost_at`."""

    status: MembershipStatus
    since: float
    lost_at: float | None = None
    is_unresponsive: bool = False


class Members:
    """This target's status, and the statuses of the others as the broker delivers them."""

    def __init__(self, us: MembershipStatus) -> None:
        self.us = us
        self.is_joined = False
        """Whether all retained messages have arrived in this connection."""
        self.has_joined = False
        """Whether they have arrived in any connection."""
        self._peers: dict[str, _Peer] = {}
        self._unknown_claimants: dict[str, float] = {}
        """Targets with claims and without a status, and since when."""

    @property
    def is_alone(self) -> bool:
        """Whether no other target is known, connected or lost."""
        return not self._peers

    @property
    def others(self) -> list[str]:
        """The other targets that are connected."""
        return [node for node, peer in self._peers.items() if peer.lost_at is None]

    @property
    def has_ready_peer(self) -> bool:
        """Whether another target takes new requests."""
        return any(self._peers[node].status.state == "ready" for node in self.others)

    def claim_voters(self) -> set[str]:
        """Return the targets whose acknowledgement a claim needs."""
        return {node for node in self.others if not self._peers[node].is_unresponsive}

    def eligible(self) -> Collection[str]:
        """Return the targets that may take a request: the ready ones, else all connected ones."""
        ready = [n for n in self.others if self._peers[n].status.state == "ready"]
        if self.us.state == "ready":
            ready.append(self.us.node)
        return ready or [self.us.node, *self.others]

    def is_chosen(self, key: str) -> bool:
        """Whether every target with the same view of the members leaves this key to us."""
        return chosen(key, self.eligible()) == self.us.node

    def is_gone(self, claim: Claim, now: float) -> bool:
        """Whether the target of a claim has stopped serving it and will not return in time."""
        peer = self._peers.get(claim.node)
        if peer is None:
            # A target that left on purpose has no grace period.
            since = self._unknown_claimants.get(claim.node, -math.inf)
        elif peer.lost_at is not None:
            since = peer.lost_at
        elif peer.status.session != claim.session:
            since = peer.since  # it restarted, and will claim again what it continues
        else:
            return False
        return since + GRACE_S <= now

    def set_status(self, state: MembershipState) -> None:
        """Change our own status."""
        self.us = msgspec.structs.replace(self.us, state=state)

    def update(self, status: MembershipStatus, now: float) -> bool:
        """Update another target. Returns whether it is new or back, and so knows no claims."""
        node = status.node
        self._unknown_claimants.pop(node, None)
        before = self._peers.get(node)
        if status.state == "left":
            self._peers.pop(node, None)
            return False
        if status.state == "lost":
            lost_at = now if before is None or before.lost_at is None else before.lost_at
            self._peers[node] = _Peer(status, now, lost_at)
            return False
        is_same = before is not None and before.status.session == status.session
        self._peers[node] = _Peer(status, before.since if before and is_same else now)
        return before is None or before.lost_at is not None or not is_same

    def add_claimant(self, node: str, now: float) -> None:
        """Note a target that has claimed a request; its status may come later."""
        if node not in self._peers:
            self._unknown_claimants.setdefault(node, now)

    def set_unresponsive(self, nodes: Iterable[str]) -> None:
        """Exclude targets that did not acknowledge a claim in time, until they acknowledge one."""
        for node in nodes:
            if (peer := self._peers.get(node)) is not None:
                peer.is_unresponsive = True

    def set_responsive(self, node: str) -> None:
        """Include a target that has acknowledged a claim."""
        if (peer := self._peers.get(node)) is not None:
            peer.is_unresponsive = False

    def disconnect(self, now: float) -> None:
        """Treat all targets as lost: without a connection their statuses are unknown."""
        self.is_joined = False
        for peer in self._peers.values():
            if peer.lost_at is None:
                peer.lost_at = now

    def join(self, now: float) -> None:
        """Complete a connection: all retained messages have arrived.

        The grace period of absent targets starts now, since they may reconnect a little later.
        """
        for peer in self._peers.values():
            if peer.lost_at is not None:
                peer.lost_at = now
        self.is_joined = self.has_joined = True

    def forget(self, now: float) -> None:
        """Forget targets that were lost long ago."""
        for node, peer in list(self._peers.items()):
            if peer.lost_at is not None and peer.lost_at + FORGET_S <= now:
                del self._peers[node]
