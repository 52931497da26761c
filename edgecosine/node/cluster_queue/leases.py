"""The statuses of the other targets, each valid only while its target renews it.

A retained status may be years old: if a target and its broker die together, no last will replaces
it. A status from before our arrival therefore counts only once it is renewed. A silent target
becomes unavailable first, and lost later.

Pure. Times are seconds of our own monotonic clock, so the clocks of other machines are irrelevant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from edgecosine.protocol.api.claim_messages import MembershipStatus

RENEW_S: Final = 1.0
"""Period of a target's status messages."""
STALE_S: Final = 3.5
"""Silence after which a target gets no new requests."""
LEASE_S: Final = 10.0
"""Silence after which a target is lost. A target that is cut off stops sending finals sooner."""
CALL_S: Final = 1.5
"""Time that a target has to answer a status request."""
MAX_KEPT: Final = 256


@dataclass(slots=True)
class _Lease:
    """The last status of a target and its time; `is_stale` once it was reported unavailable."""

    status: MembershipStatus
    renewed_at: float
    is_stale: bool = False


class Leases:
    """The leases of the other targets."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._unconfirmed: dict[str, MembershipStatus] = {}
        """Retained statuses that were not renewed yet."""

    def reset(self) -> None:
        """Forget everything: a new connection starts, and all statuses come again."""
        self._leases.clear()
        self._unconfirmed.clear()

    def add_retained(self, status: MembershipStatus) -> None:
        """Add a status that the broker retained."""
        if len(self._unconfirmed) < MAX_KEPT:
            self._unconfirmed[status.node] = status

    def renew(self, status: MembershipStatus, now: float) -> bool:
        """Renew a lease. Returns False if there is no room for a new one."""
        self._unconfirmed.pop(status.node, None)
        if status.node not in self._leases and len(self._leases) >= MAX_KEPT:
            return False
        self._leases[status.node] = _Lease(status, now)
        return True

    def end(self, node: str) -> None:
        """End the lease of a target that left or was lost."""
        self._unconfirmed.pop(node, None)
        self._leases.pop(node, None)

    def is_unconfirmed(self, node: str) -> bool:
        """Whether only a retained status of a target is known."""
        return node in self._unconfirmed

    @property
    def all_confirmed(self) -> bool:
        """Whether every retained status was renewed."""
        return not self._unconfirmed

    def give_up(self) -> list[MembershipStatus]:
        """Drop the unconfirmed statuses and return them as lost."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        return [_lost(status) for status in unconfirmed.values()]

    def expect_renewal(self, now: float) -> None:
        """Shorten all leases: a target that does not answer a status request soon is stale."""
        for lease in self._leases.values():
            lease.renewed_at = min(lease.renewed_at, now - STALE_S + CALL_S)

    def expire(self, now: float) -> list[MembershipStatus]:
        """Return the new statuses of targets that have been silent for too long."""
        statuses = []
        for node, lease in list(self._leases.items()):
            silent_s = now - lease.renewed_at
            if silent_s >= LEASE_S:
                del self._leases[node]
                statuses.append(_lost(lease.status))
            elif silent_s >= STALE_S and not lease.is_stale:
                lease.is_stale = True
                statuses.append(msgspec.structs.replace(lease.status, state="unavailable"))
        return statuses

    def is_fresh(self, node: str) -> bool:
        """Whether a target has renewed its lease lately."""
        lease = self._leases.get(node)
        return lease is not None and not lease.is_stale


def _lost(status: MembershipStatus) -> MembershipStatus:
    return msgspec.structs.replace(status, state="lost")
