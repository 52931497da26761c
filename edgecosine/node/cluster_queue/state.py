"""The rules by which the targets of a cluster share one queue.

Every target receives every request. The chosen one claims it, and starts it once the others have
acknowledged the claim. The others keep a request until it is claimed, and a claim until its request
is finished. When a target is gone, its requests go to the targets that the same choice names among
the remaining ones.

Pure: events come in by calls with the time, in seconds of any monotonic clock, and actions are
returned. Every target orders two claims to one request in the same way, so exactly one of two
claimants gives up.

`Members`, `OwnClaims`, `PeerClaims` and `UnclaimedRequests` keep the parts of the state. This file
decides the moves between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    AcknowledgeClaim,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    QueueAction,
)
from edgecosine.node.cluster_queue.members import Members
from edgecosine.node.cluster_queue.own_claims import OwnClaims
from edgecosine.node.cluster_queue.peer_claims import PeerClaims, rank
from edgecosine.node.cluster_queue.unclaimed import UnclaimedRequests
from edgecosine.protocol.api.claim_messages import Claim, MembershipState, MembershipStatus
from edgecosine.protocol.api.request_record import RequestTicket

UNCLAIMED_S: Final = 2.0
"""Time after which any target that received an unclaimed request claims it."""
_MAX_UNCLAIMED: Final = 1024


class QueueState:
    """One target's view. `has_finished` returns whether the final of a request is kept here."""

    def __init__(self, us: MembershipStatus, *, has_finished: Callable[[str], bool]) -> None:
        self.members = Members(us)
        self.own = OwnClaims(self.members, has_finished)
        self._peers = PeerClaims(self.members)
        self._unclaimed = UnclaimedRequests(_MAX_UNCLAIMED)
        self._claimed_keys: set[str] | None = None
        """Keys of all claims that arrived in this connection, until it is joined."""

    def __repr__(self) -> str:
        return (
            f"<QueueState {self.us.node} [{len(self.own)} own, {len(self._peers)} of peers, "
            f"{len(self._unclaimed)} unclaimed]>"
        )

    @property
    def us(self) -> MembershipStatus:
        """Our own status."""
        return self.members.us

    @property
    def is_lone(self) -> bool:
        """Whether this connection is joined and no other target is known."""
        return self.members.is_joined and self.members.is_alone

    def has_other(self, ticket: RequestTicket) -> bool:
        """Whether another request of ours has this key."""
        ours = self.own.get(ticket.key)
        return ours is not None and ours.ticket.digest != ticket.digest

    def is_chosen(self, ticket: RequestTicket) -> bool:
        """Whether this target is the one to claim a new request."""
        if self.is_lone:
            return True
        # Each target names a request without an id itself, so the body decides.
        key = ticket.key if ticket.is_named else ticket.digest.hex()
        return self.members.is_joined and self.members.is_chosen(key)

    def is_open(self, key: str) -> bool:
        """Whether a request was received, and is neither started here nor claimed elsewhere."""
        return key in self._unclaimed or self.own.is_pending(key)

    def on_request(self, claim: Claim, now: float) -> list[QueueAction]:
        """Handle a new request, by the claim that we would make."""
        if self.is_lone:
            return self.own.claim(claim, now)
        key = claim.key
        if key in self.own:
            self.own.renew(claim.ticket)
            return []
        self.own.reopen(key)
        if key in self._peers:
            self._peers.renew(claim.ticket)
            return []
        if self._unclaimed.use_early_claim(claim.ticket):
            return []
        if self.is_chosen(claim.ticket):
            return self.own.claim(claim, now)
        if not self._peers.is_settled(key, now - UNCLAIMED_S):
            self._unclaimed.add(claim, now)
        return []

    def repeat(self, ticket: RequestTicket) -> list[QueueAction]:
        """Announce to the other targets that a repeated request was finished here."""
        is_known = self.members.is_alone or ticket.key in self.own
        return [] if is_known else [PublishKnown(ticket)]

    def withdraw(self, ticket: RequestTicket) -> list[QueueAction]:
        """Give up a request that was refused here, also for the other targets."""
        actions: list[QueueAction] = [] if self.members.is_alone else [PublishKnown(ticket)]
        if self.own.drop(ticket.key):
            actions.append(ClearClaim(ticket.key))
        return actions

    def on_claim(self, claim: Claim, now: float, *, is_retained: bool = False) -> list[QueueAction]:
        """Handle a published claim, which may be our own."""
        key = claim.key
        if self._claimed_keys is not None:
            self._claimed_keys.add(key)
        if claim.node == self.us.node:
            return self.own.on_own_claim(claim, now)
        if self.own.is_undelivered(key):
            return self.own.on_rival_of_undelivered(claim.ticket)
        if self.own.is_finished(key):
            return [PublishKnown(claim.ticket), ClearClaim(key)]
        actions: list[QueueAction] = []
        if (ours := self.own.get(key)) is not None:
            if rank(ours) > rank(claim):
                return self.own.republish(key)
            actions.append(AbandonRequest(key))
            if self.own.drop(key):
                # Our claim may have replaced the better one on the broker.
                actions.append(PublishClaim(claim))
        self._unclaimed.on_claim(claim.ticket)
        self._peers.add(claim, now)
        if not is_retained:
            actions.append(AcknowledgeClaim(claim))
        return actions

    def on_claim_cleared(self, key: str, now: float) -> list[QueueAction]:
        """Handle a cleared claim, which may be our own."""
        self._peers.clear(key, now)
        self._unclaimed.drop(key)
        return self.own.on_cleared(key)

    def on_known(self, key: str, node: str, digest: bytes, now: float) -> list[QueueAction]:
        """Handle the message that a target has finished or refused a request."""
        if node == self.us.node:
            return []
        self._peers.settle(key, node, now)
        self._unclaimed.settle(key, digest)
        if key not in self.own or self.own.is_finished(key):
            return []
        self.own.drop(key)
        return [AbandonRequest(key)]

    def on_ack(self, node: str, key: str, generation: int) -> list[QueueAction]:
        """Handle the acknowledgement of a claim of ours."""
        self.members.set_responsive(node)
        return self.own.on_ack(node, key, generation)

    def on_status(self, status: MembershipStatus, now: float) -> list[QueueAction]:
        """Handle the status of another target with our identity."""
        is_new = self.members.update(status, now)
        actions: list[QueueAction] = []
        if status.state in ("left", "lost"):
            actions += self.own.proceed_without([status.node])
        elif is_new:
            actions += self.own.republish_all()
        return [*actions, *self._claim_open(now)]

    def set_status(self, state: MembershipState, now: float) -> list[QueueAction]:
        """Change our own status."""
        self.members.set_status(state)
        return self._claim_open(now)

    def on_connected(self, now: float) -> None:
        """Start a connection; the retained messages come now."""
        self.members.disconnect(now)
        self._claimed_keys = set()

    def join(self, now: float, *, is_remembered: bool) -> list[QueueAction]:
        """Complete a connection: all retained messages have arrived.

        `is_remembered` is whether the broker still had our own retained status.
        """
        claimed, self._claimed_keys = self._claimed_keys or set(), None
        if is_remembered:
            self._peers.keep_only(claimed)
        self.members.join(now)
        return [
            *self.own.reclaim_all(now),
            *self.own.settle_undelivered(claimed, is_remembered=is_remembered),
            *self._claim_open(now),
        ]

    def on_tick(self, now: float) -> list[QueueAction]:
        """Handle the passing of time."""
        overdue = self.own.overdue(now)
        self.members.set_unresponsive(overdue)
        actions = self.own.proceed_without(overdue)
        self.members.forget(now)
        return [*actions, *self._claim_open(now)]

    def _claim_open(self, now: float) -> list[QueueAction]:
        """Claim unclaimed and abandoned requests that are ours to take by now."""
        if not self.members.is_joined:
            return []
        actions: list[QueueAction] = []
        for claim, since in self._unclaimed.all():
            is_overdue = since + UNCLAIMED_S <= now and self.us.node in self.members.eligible()
            if is_overdue or self.is_chosen(claim.ticket):
                self._unclaimed.drop(claim.key)
                actions += self.own.claim(claim, now)
        for theirs in self._peers.abandoned(now):
            if self.members.is_chosen(theirs.key):
                self._peers.drop(theirs.key)
                actions += self.own.claim(self._takeover(theirs), now)
        return actions

    def _takeover(self, theirs: Claim) -> Claim:
        return msgspec.structs.replace(
            theirs, node=self.us.node, session=self.us.session,
            generation=theirs.generation + 1, taken_from=theirs.node,
        )  # fmt: skip
