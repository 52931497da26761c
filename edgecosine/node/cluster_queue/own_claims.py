"""The requests of this target: claimed, acknowledged and started, finished, or undelivered.

Pure. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    QueueAction,
    StartRequest,
)
from edgecosine.node.cluster_queue.members import Members
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request_record import RequestTicket

ACK_TIMEOUT_S: Final = 0.5
"""How long a claim waits for an acknowledgement, before its target counts as unresponsive."""
MAX_DONE: Final = 16384
MAX_END_BYTES: Final = 512 << 10
"""Beside a request of 256 KiB it fits into a message."""


@dataclass(slots=True)
class _OwnClaim:
    """A claim of ours, which waits for `missing_acks` until `ack_deadline`."""

    claim: Claim
    missing_acks: set[str]
    ack_deadline: float
    is_started: bool = False
    is_published: bool = False
    is_end_retained: bool = False
    """Whether the broker retains the end of the request with this claim."""
    is_refused: bool = False
    """Whether this claim is too long for the broker."""

    def publish(self) -> list[QueueAction]:
        self.is_published = True
        return [PublishClaim(self.claim)]


class OwnClaims:
    """Our claims. `has_finished` returns whether the final of a request is kept here."""

    def __init__(self, members: Members, has_finished: Callable[[str], bool]) -> None:
        self._members, self._has_finished = members, has_finished
        self._claims: dict[str, _OwnClaim] = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        """Keys of requests finished here; their number exceeds that of the kept finals."""
        self._undelivered: dict[str, bool] = {}
        """Finals of a former process, and whether they are certainly ours to send."""

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, key: str) -> Claim | None:
        """Return our claim to a request."""
        own = self._claims.get(key)
        return None if own is None else own.claim

    def is_acknowledged(self, key: str) -> bool:
        """Whether a request is certainly ours: no other target can send another final of it."""
        if key in self._undelivered:
            return self._undelivered[key]
        if self._members.is_alone:
            return self._members.has_joined
        own = self._claims.get(key)
        if own is None or not self._members.is_joined:
            return False
        is_safe = own.claim.end is None or own.is_end_retained or not own.is_published
        return own.is_started and not own.missing_acks and is_safe

    def is_pending(self, key: str) -> bool:
        """Whether a request is claimed and not yet started."""
        own = self._claims.get(key)
        return own is not None and not own.is_started

    def is_finished(self, key: str) -> bool:
        """Whether a request was finished here."""
        return key in self._done or self._has_finished(key)

    def claim(self, claim: Claim, now: float) -> list[QueueAction]:
        """Claim a request; it starts at once if no acknowledgement is needed."""
        members = self._members
        own = _OwnClaim(claim, members.claim_voters(), now + ACK_TIMEOUT_S)
        self._claims[claim.key] = own
        actions = own.publish() if members.is_joined and not members.is_alone else []
        return [*actions, *self._start_if_free(own)]

    def renew(self, ticket: RequestTicket) -> None:
        """Update the reply address of a repeated request."""
        own = self._claims[ticket.key]
        own.claim = msgspec.structs.replace(own.claim, ticket=ticket)

    def add_end(self, key: str, end: RequestEnd) -> list[QueueAction]:
        """Add its end to our claim, so that a target that takes it over sends the same final.

        An end that is too long for a claim is left out.
        """
        own = self._claims.get(key)
        if own is None or own.is_refused or end.num_bytes > MAX_END_BYTES or own.claim.end == end:
            return []
        own.claim, own.is_end_retained = msgspec.structs.replace(own.claim, end=end), False
        return [] if self._members.is_alone else own.publish()

    def refuse(self, key: str) -> None:
        """Leave the end out of our claim, which is too long for the broker."""
        if (own := self._claims.get(key)) is not None:
            own.claim, own.is_refused = msgspec.structs.replace(own.claim, end=None), True

    def reopen(self, key: str) -> None:
        """Accept a finished request as a new one, since its final is no longer kept."""
        self._done.pop(key, None)

    def drop(self, key: str) -> bool:
        """Drop a claim. Returns whether it was published."""
        own = self._claims.pop(key, None)
        return own is not None and own.is_published

    def finish(self, key: str) -> list[QueueAction]:
        """Drop the claim to a request whose final was delivered."""
        if self._undelivered.pop(key, None) is not None:
            return [] if self._members.is_alone else [ClearClaim(key)]
        if key not in self._claims:
            return []
        self._done[key] = None
        if len(self._done) > MAX_DONE:
            self._done.popitem(last=False)
        return [ClearClaim(key)] if self.drop(key) else []

    def republish(self, key: str) -> list[QueueAction]:
        """Publish a claim of ours again, against a lesser one."""
        return self._claims[key].publish()

    def on_cleared(self, key: str) -> list[QueueAction]:
        """Publish a claim again that was cleared by mistake."""
        own = self._claims.get(key)
        return own.publish() if own is not None and own.is_published else []

    def republish_all(self) -> list[QueueAction]:
        """Publish all claims for a target that is new."""
        return [action for own in self._claims.values() for action in own.publish()]

    def on_own_claim(self, claim: Claim, now: float) -> list[QueueAction]:
        """Handle a published claim of this process, or of a former one on this node."""
        key, session = claim.key, self._members.us.session
        own = self._claims.get(key)
        if claim.session == session:
            if own is None:
                return [ClearClaim(key)] if key in self._done else []
            own.is_end_retained = claim.end is not None and claim.end == own.claim.end
            return []
        if own is None:
            if key in self._undelivered:
                return []
            if self.is_finished(key):
                return [ClearClaim(key)]
            return self.claim(msgspec.structs.replace(claim, session=session), now)
        if claim.generation > own.claim.generation:
            own.claim = msgspec.structs.replace(own.claim, generation=claim.generation)
        return own.publish()

    def on_ack(self, node: str, key: str, generation: int) -> list[QueueAction]:
        """Handle the acknowledgement of a claim by another target."""
        own = self._claims.get(key)
        if own is None or own.claim.generation != generation:
            return []
        own.missing_acks.discard(node)
        return self._start_if_free(own)

    def overdue(self, now: float) -> set[str]:
        """Return the targets whose acknowledgements are overdue."""
        claims = self._claims.values()
        return {node for own in claims if own.ack_deadline <= now for node in own.missing_acks}

    def proceed_without(self, nodes: Iterable[str]) -> list[QueueAction]:
        """Stop waiting for the acknowledgements of these targets."""
        actions: list[QueueAction] = []
        for own in self._claims.values():
            if own.missing_acks:
                own.missing_acks.difference_update(nodes)
                actions += self._start_if_free(own)
        return actions

    def reclaim_all(self, now: float) -> list[QueueAction]:
        """Claim all requests again in a new connection."""
        for own in self._claims.values():
            own.missing_acks = self._members.claim_voters()
            own.ack_deadline = now + ACK_TIMEOUT_S
            own.is_end_retained = False
        actions = [] if self._members.is_alone else self.republish_all()
        for own in self._claims.values():
            actions += self._start_if_free(own)
        return actions

    def expect_delivery(self, key: str) -> None:
        """Register a final of a former process that may be undelivered."""
        self._undelivered[key] = False

    def is_undelivered(self, key: str) -> bool:
        """Whether a final of a former process may be undelivered."""
        return key in self._undelivered

    def on_rival_of_undelivered(self, ticket: RequestTicket) -> list[QueueAction]:
        """Keep a final of a former process that another target claims, and so has not sent."""
        self._undelivered[ticket.key] = True
        return [PublishKnown(ticket)]

    def settle_undelivered(
        self, claimed: Collection[str], *, is_remembered: bool
    ) -> list[QueueAction]:
        """Decide which finals of a former process are ours to send.

        `claimed` are the keys of all retained claims. `is_remembered` is whether the broker
        still had our own retained status.
        """
        actions: list[QueueAction] = []
        is_alone = self._members.is_alone
        for key, is_ours in list(self._undelivered.items()):
            # Beside other targets our claim is retained, unless one of them has sent a final.
            if is_ours or is_alone or not is_remembered or key in claimed:
                self._undelivered[key] = True
            else:
                del self._undelivered[key]
                actions.append(AbandonRequest(key))
        return actions

    def _start_if_free(self, own: _OwnClaim) -> list[QueueAction]:
        if own.is_started or own.missing_acks or not self._members.is_joined:
            return []
        own.is_started = True
        return [StartRequest(own.claim)]
