"""Who of the targets has which request: the rules by which several of them share one queue.

Every target hears every request. The chosen one claims it and starts it once the others consent;
the others keep what they heard until it is claimed, and what is claimed until it is done. When a
target is gone, its claims are taken by whom the same choice names among those that are left.

Pure: what happens comes in by calls with the time, in seconds of any steady clock, and what is to
be done goes out as effects. Every two claims to one request are ordered in the same way by all who
see them, so of two claimants exactly one gives up.

Who is there is kept in `Members`, what is ours in `OwnClaims`, what is another's in `PeerClaims`
and what is nobody's yet in `UnclaimedRequests`. Here is decided what goes from one to another.
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
from edgecosine.protocol.api.claim_messages import Claim, MembershipStatus, StandingState
from edgecosine.protocol.api.request_record import ReplyAddress

UNCLAIMED_S: Final = 2.0
"""After so long a request that nobody claims is taken by whoever has heard it."""
_MAX_HEARD: Final = 1024


class QueueState:
    """One target's book. `knows` tells whether a request was answered here."""

    def __init__(self, us: MembershipStatus, *, knows: Callable[[str], bool]) -> None:
        self._standings = Members(us)
        self._ours = OwnClaims(self._standings, knows)
        self._theirs = PeerClaims(self._standings)
        self._heard = UnclaimedRequests(_MAX_HEARD)
        self._heard_again: set[str] | None = None
        """What anybody claims, while all comes that the broker holds."""

    def __repr__(self) -> str:
        return (
            f"<QueueState {self.us.node} [{len(self._ours)} ours, {len(self._theirs)} of others, "
            f"{len(self._heard)} heard]>"
        )

    @property
    def us(self) -> MembershipStatus:
        """How we stand."""
        return self._standings.us

    @property
    def others(self) -> list[str]:
        """The targets that are there beside us."""
        return self._standings.others

    @property
    def is_alone(self) -> bool:
        """Whether no other target is known, neither one that is there nor one that was lost."""
        return self._standings.is_alone

    @property
    def has_stand_in(self) -> bool:
        """Whether another target takes new requests."""
        return self._standings.has_stand_in

    @property
    def is_joined(self) -> bool:
        """Whether all that the broker holds has been heard in this connection."""
        return self._standings.is_joined

    def is_ours(self, key: str) -> bool:
        """Whether a request is ours as far as can be known: all others agree."""
        return self._ours.is_sure(key)

    def is_another(self, ticket: ReplyAddress) -> bool:
        """Whether we have a request of that name with another body."""
        ours = self._ours.get(ticket.key)
        return ours is not None and ours.ticket.digest != ticket.digest

    def is_open(self, key: str) -> bool:
        """Whether a request was heard, and is neither started here nor claimed elsewhere."""
        return key in self._heard or self._ours.is_pending(key)

    def hear(self, claim: Claim, now: float) -> list[QueueAction]:
        """A request came; `claim` is what we would say of it."""
        if self.is_alone and self.is_joined:
            return self._ours.take(claim, now)
        key = claim.key
        if key in self._ours:
            self._ours.renew(claim.ticket)
            return []
        self._ours.reopen(key)
        if key in self._theirs:
            self._theirs.renew(claim.ticket)
            return []
        if self._heard.is_claimed(claim.ticket):
            return []
        if self.is_joined and self._is_chosen(claim):
            return self._ours.take(claim, now)
        if not self._theirs.is_settled(key, now - UNCLAIMED_S):
            self._heard.keep(claim, now)
        return []

    def resume(self, claim: Claim, now: float) -> list[QueueAction]:
        """A request of our former life."""
        return self._ours.take(claim, now)

    def owe(self, key: str) -> None:
        """Our former life has answered a request, and the broker may not have the answer."""
        self._ours.owe(key)

    def repeat(self, ticket: ReplyAddress) -> list[QueueAction]:
        """A request came that was answered here, so nobody else need care for it."""
        return [] if self.is_alone or ticket.key in self._ours else [PublishKnown(ticket)]

    def withdraw(self, ticket: ReplyAddress) -> list[QueueAction]:
        """The request was refused, so nobody need care for it."""
        effects: list[QueueAction] = [] if self.is_alone else [PublishKnown(ticket)]
        if self._ours.drop(ticket.key):
            effects.append(ClearClaim(ticket.key))
        return effects

    def finish(self, key: str) -> list[QueueAction]:
        """The broker has the final message."""
        return self._ours.finish(key)

    def claimed(self, claim: Claim, now: float, *, is_retained: bool = False) -> list[QueueAction]:
        """A claim was published, ours among them."""
        key = claim.key
        if self._heard_again is not None:
            self._heard_again.add(key)
        if claim.node == self.us.node:
            return self._ours.hear_own(claim, now)
        if self._ours.owes(key):
            return self._ours.insist(claim.ticket)
        if self._ours.is_answered(key):
            return [PublishKnown(claim.ticket), ClearClaim(key)]
        effects: list[QueueAction] = []
        if (ours := self._ours.get(key)) is not None:
            if rank(ours) > rank(claim):
                return self._ours.tell(key)
            effects.append(AbandonRequest(key))
            if self._ours.drop(key):
                # Ours may have been published after the one that counts.
                effects.append(PublishClaim(claim))
        self._heard.claim(claim.ticket)
        self._theirs.put(claim, now)
        if not is_retained:
            effects.append(AcknowledgeClaim(claim))
        return effects

    def cleared(self, key: str, now: float) -> list[QueueAction]:
        """A claim was cleared, ours among them."""
        self._theirs.clear(key, now)
        self._heard.drop(key)
        return self._ours.tell_again(key)

    def known(self, key: str, node: str, digest: bytes, now: float) -> list[QueueAction]:
        """A target has answered a request, or refused it."""
        if node == self.us.node:
            return []
        self._theirs.settle(key, node, now)
        self._heard.settle(key, digest)
        if key not in self._ours or self._ours.is_answered(key):
            return []
        self._ours.drop(key)
        return [AbandonRequest(key)]

    def consented(self, node: str, key: str, generation: int) -> list[QueueAction]:
        """Another target agrees to our claim."""
        self._standings.consents(node)
        return self._ours.consented(node, key, generation)

    def stands(self, standing: MembershipStatus, now: float) -> list[QueueAction]:
        """Another target of our identity said how it stands."""
        has_come = self._standings.hear(standing, now)
        effects: list[QueueAction] = []
        if standing.state in ("left", "lost"):
            effects += self._ours.go_without([standing.node])
        elif has_come:
            effects += self._ours.tell_all()
        return [*effects, *self._reconsider(now)]

    def say(self, state: StandingState, now: float) -> list[QueueAction]:
        """We stand otherwise."""
        self._standings.say(state)
        return self._reconsider(now)

    def lose(self, now: float) -> None:
        """The connection broke: until it is back nothing is known."""
        self._standings.lose(now)

    def arrive(self, now: float) -> None:
        """A connection stands; what the broker holds comes now."""
        self._standings.lose(now)
        self._heard_again = set()

    def join(self, now: float, *, is_remembered: bool) -> list[QueueAction]:
        """All that the broker holds has come; `is_remembered`: it still had our own words."""
        claimed, self._heard_again = self._heard_again or set(), None
        if is_remembered:
            self._theirs.keep_only(claimed)
        self._standings.join(now)
        return [
            *self._ours.ask_again(now),
            *self._ours.settle_owed(claimed, is_remembered=is_remembered),
            *self._reconsider(now),
        ]

    def tick(self, now: float) -> list[QueueAction]:
        """Time passes."""
        silent = self._ours.overdue(now)
        self._standings.silence(silent)
        effects = self._ours.go_without(silent)
        self._standings.forget(now)
        return [*effects, *self._reconsider(now)]

    def _reconsider(self, now: float) -> list[QueueAction]:
        """Take what falls to us by now."""
        if not self.is_joined:
            return []
        effects: list[QueueAction] = []
        for claim, since in self._heard.all():
            is_stale = since + UNCLAIMED_S <= now and self.us.node in self._standings.eligible()
            if is_stale or self._is_chosen(claim):
                self._heard.drop(claim.key)
                effects += self._ours.take(claim, now)
        for theirs in self._theirs.abandoned(now):
            if self._standings.is_chosen(theirs.key):
                self._theirs.drop(theirs.key)
                effects += self._ours.take(self._taken(theirs), now)
        return effects

    def _is_chosen(self, claim: Claim) -> bool:
        # The name of a request without an id is ours alone.
        key = claim.key if claim.ticket.is_named else claim.ticket.digest.hex()
        return self._standings.is_chosen(key)

    def _taken(self, theirs: Claim) -> Claim:
        return msgspec.structs.replace(
            theirs, node=self.us.node, session=self.us.session,
            generation=theirs.generation + 1, taken_from=theirs.node,
        )  # fmt: skip
