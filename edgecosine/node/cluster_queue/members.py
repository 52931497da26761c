"""How the targets of one model stand: who is there beside us, who may take what, and who is gone.

Pure; times are seconds of any steady clock.
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
"""In which a target that was lost may come back to its work; as long as couriers pause at most."""
FORGET_S: Final = 3600.0
"""After which a target that was lost counts as one that was never there."""


@dataclass(slots=True)
class _Peer:
    """Another target, in this life since `since`; `lost_at` is when it was lost."""

    standing: MembershipStatus
    since: float
    lost_at: float | None = None
    is_silent: bool = False


class Members:
    """Our standing, and those of the other targets as far as the broker lets us hear of them."""

    def __init__(self, us: MembershipStatus) -> None:
        self.us = us
        self.is_joined = False
        """Whether all that the broker holds has been heard in this connection."""
        self.has_joined = False
        """Whether it has been heard in any connection."""
        self._peers: dict[str, _Peer] = {}
        self._strangers: dict[str, float] = {}
        """Since when there are claims of targets that never said how they stand."""

    @property
    def is_alone(self) -> bool:
        """Whether no other target is known, neither one that is there nor one that was lost."""
        return not self._peers

    @property
    def others(self) -> list[str]:
        """The targets that are there beside us."""
        return [node for node, peer in self._peers.items() if peer.lost_at is None]

    @property
    def has_stand_in(self) -> bool:
        """Whether another target takes new requests."""
        return any(self._peers[node].standing.state == "ready" for node in self.others)

    def to_ask(self) -> set[str]:
        """Whose consent a claim waits for."""
        return {node for node in self.others if not self._peers[node].is_silent}

    def eligible(self) -> Collection[str]:
        """Who may take a request: those who are ready; if nobody is, all who are there."""
        ready = [n for n in self.others if self._peers[n].standing.state == "ready"]
        if self.us.state == "ready":
            ready.append(self.us.node)
        return ready or [self.us.node, *self.others]

    def is_chosen(self, key: str) -> bool:
        """Whether all who see the same targets would leave this to us."""
        return chosen(key, self.eligible()) == self.us.node

    def is_gone(self, claim: Claim, now: float) -> bool:
        """Whether nobody works on a claim, nor will come back to it soon."""
        peer = self._peers.get(claim.node)
        if peer is None:
            # A target that has said that it leaves is waited for no more.
            since = self._strangers.get(claim.node, -math.inf)
        elif peer.lost_at is not None:
            since = peer.lost_at
        elif peer.standing.session != claim.session:
            since = peer.since  # another life of it, which will say what it goes on with
        else:
            return False
        return since + GRACE_S <= now

    def say(self, state: MembershipState) -> None:
        """We stand otherwise."""
        self.us = msgspec.structs.replace(self.us, state=state)

    def hear(self, standing: MembershipStatus, now: float) -> bool:
        """Another target stands so; whether it has come, or come back, and knows no claims."""
        node = standing.node
        self._strangers.pop(node, None)
        before = self._peers.get(node)
        if standing.state == "left":
            self._peers.pop(node, None)
            return False
        if standing.state == "lost":
            lost_at = now if before is None or before.lost_at is None else before.lost_at
            self._peers[node] = _Peer(standing, now, lost_at)
            return False
        is_same = before is not None and before.standing.session == standing.session
        self._peers[node] = _Peer(standing, before.since if before and is_same else now)
        return before is None or before.lost_at is not None or not is_same

    def meet(self, node: str, now: float) -> None:
        """A target has claimed something, before or after it said how it stands."""
        if node not in self._peers:
            self._strangers.setdefault(node, now)

    def silence(self, nodes: Iterable[str]) -> None:
        """These did not consent in time: they are not waited for until they do."""
        for node in nodes:
            if (peer := self._peers.get(node)) is not None:
                peer.is_silent = True

    def consents(self, node: str) -> None:
        """This one does consent."""
        if (peer := self._peers.get(node)) is not None:
            peer.is_silent = False

    def lose(self, now: float) -> None:
        """The connection broke: until it is back nothing is known."""
        self.is_joined = False
        for peer in self._peers.values():
            if peer.lost_at is None:
                peer.lost_at = now

    def join(self, now: float) -> None:
        """All that the broker holds has come.

        The grace of those who are not there begins now, for they may come a little later.
        """
        for peer in self._peers.values():
            if peer.lost_at is not None:
                peer.lost_at = now
        self.is_joined = self.has_joined = True

    def forget(self, now: float) -> None:
        """Forget those who were lost long ago."""
        for node, peer in list(self._peers.items()):
            if peer.lost_at is not None and peer.lost_at + FORGET_S <= now:
                del self._peers[node]
