"""How the other targets stand as long as they keep saying so.

What a broker holds may be years old: a target that died together with its broker has left a word
that no will ever took back. So what was held before we came counts once it is said again, and a
target that says nothing any more stands as unavailable at first, and then as lost.

Pure; times are seconds of our own steady clock, so nobody else's clock matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from edgecosine.protocol.api.claim_messages import MembershipStatus

RENEW_S: Final = 1.0
"""How often a target says how it stands."""
STALE_S: Final = 3.5
"""After so long in silence a target is given nothing new."""
LEASE_S: Final = 10.0
"""After so long it is lost; sooner than that it sends no final any more if it is cut off itself."""
CALL_S: Final = 1.5
"""How long who is called may take to answer."""
MAX_KEPT: Final = 256


@dataclass(slots=True)
class _Lease:
    """What a target said last, when, and whether it is taken for unavailable since."""

    standing: MembershipStatus
    said_at: float
    is_stale: bool = False


class Leases:
    """The words of the other targets, and how long they hold."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._unsure: dict[str, MembershipStatus] = {}
        """What was held when we came and was not said again yet."""

    def start(self) -> None:
        """A connection stands, in which everything is to be said again."""
        self._leases.clear()
        self._unsure.clear()

    def find(self, standing: MembershipStatus) -> None:
        """The broker held this before we came."""
        if len(self._unsure) < MAX_KEPT:
            self._unsure[standing.node] = standing

    def renew(self, standing: MembershipStatus, now: float) -> bool:
        """A target has said this; False when there is no room for its lease."""
        self._unsure.pop(standing.node, None)
        if standing.node not in self._leases and len(self._leases) >= MAX_KEPT:
            return False
        self._leases[standing.node] = _Lease(standing, now)
        return True

    def end(self, node: str) -> None:
        """A target is gone, or the broker has said so in its name."""
        self._unsure.pop(node, None)
        self._leases.pop(node, None)

    def was_found(self, node: str) -> bool:
        """Whether a target was there before us, as far as the broker knows."""
        return node in self._unsure

    @property
    def is_sure(self) -> bool:
        """Whether all that was held has been said again."""
        return not self._unsure

    def give_up(self) -> list[MembershipStatus]:
        """Those that were called and did not answer, as lost."""
        found, self._unsure = self._unsure, {}
        return [_lost(standing) for standing in found.values()]

    def call(self, now: float) -> None:
        """All are called: who does not answer soon counts as silent."""
        for lease in self._leases.values():
            lease.said_at = min(lease.said_at, now - STALE_S + CALL_S)

    def silent(self, now: float) -> list[MembershipStatus]:
        """What is to be taken for said by those who were silent for too long."""
        said = []
        for node, lease in list(self._leases.items()):
            silent_s = now - lease.said_at
            if silent_s >= LEASE_S:
                del self._leases[node]
                said.append(_lost(lease.standing))
            elif silent_s >= STALE_S and not lease.is_stale:
                lease.is_stale = True
                said.append(msgspec.structs.replace(lease.standing, state="unavailable"))
        return said

    def is_heard(self, node: str) -> bool:
        """Whether a target was not silent for long."""
        lease = self._leases.get(node)
        return lease is not None and not lease.is_stale


def _lost(standing: MembershipStatus) -> MembershipStatus:
    return msgspec.structs.replace(standing, state="lost")
