"""The requests that are ours: claimed, started once the others consent, answered, or still owed.

Pure; times are seconds of any steady clock.
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
from edgecosine.protocol.api.request_record import ReplyAddress

CONSENT_S: Final = 0.5
"""How long a claim waits for another target, which is not waited for again until it speaks."""
MAX_DONE: Final = 16384


@dataclass(slots=True)
class _Work:
    """A request of ours. `waiting` are the targets whose consent is missing, `until` when."""

    claim: Claim
    waiting: set[str]
    until: float
    is_started: bool = False
    is_told: bool = False


class OwnClaims:
    """What is ours of the queue. `knows` tells whether a request was answered here."""

    def __init__(self, standings: Members, knows: Callable[[str], bool]) -> None:
        self._standings, self._knows = standings, knows
        self._works: dict[str, _Work] = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        """Keys of what was answered here, of more than answers are kept."""
        self._owed: dict[str, bool] = {}
        """Answers of our former life, and whether they are still ours to give."""

    def __contains__(self, key: str) -> bool:
        return key in self._works

    def __len__(self) -> int:
        return len(self._works)

    def get(self, key: str) -> Claim | None:
        """Our claim to a request."""
        work = self._works.get(key)
        return None if work is None else work.claim

    def is_sure(self, key: str) -> bool:
        """Whether a request is ours as far as can be known: all others agree."""
        if key in self._owed:
            return self._owed[key]
        if self._standings.is_alone:
            return self._standings.has_joined
        work = self._works.get(key)
        is_free = work is not None and work.is_started and not work.waiting
        return self._standings.is_joined and is_free

    def is_pending(self, key: str) -> bool:
        """Whether a request is claimed and not yet started."""
        work = self._works.get(key)
        return work is not None and not work.is_started

    def is_answered(self, key: str) -> bool:
        """Whether a request was answered here."""
        return key in self._done or self._knows(key)

    def take(self, claim: Claim, now: float) -> list[QueueAction]:
        """Claim a request; it starts at once where nobody is to be asked."""
        standings = self._standings
        work = _Work(claim, standings.to_ask(), now + CONSENT_S)
        self._works[claim.key] = work
        is_heard = standings.is_joined and not standings.is_alone
        effects = _tell(work) if is_heard else []
        return [*effects, *self._start_if_free(work)]

    def renew(self, ticket: ReplyAddress) -> None:
        """A request of ours came again: it is answered as its asker wishes by now."""
        work = self._works[ticket.key]
        work.claim = msgspec.structs.replace(work.claim, ticket=ticket)

    def reopen(self, key: str) -> None:
        """A request comes anew whose answer is no longer kept."""
        self._done.pop(key, None)

    def drop(self, key: str) -> bool:
        """Claim a request no more; whether the others were told of the claim."""
        work = self._works.pop(key, None)
        return work is not None and work.is_told

    def finish(self, key: str) -> list[QueueAction]:
        """The broker has the final message."""
        if self._owed.pop(key, None) is not None:
            return [] if self._standings.is_alone else [ClearClaim(key)]
        if key not in self._works:
            return []
        self._done[key] = None
        if len(self._done) > MAX_DONE:
            self._done.popitem(last=False)
        return [ClearClaim(key)] if self.drop(key) else []

    def tell(self, key: str) -> list[QueueAction]:
        """Another target claims what is ours."""
        return _tell(self._works[key])

    def tell_again(self, key: str) -> list[QueueAction]:
        """A claim to this was cleared, perhaps ours."""
        work = self._works.get(key)
        return _tell(work) if work is not None and work.is_told else []

    def tell_all(self) -> list[QueueAction]:
        """A target has come that knows no claims."""
        return [effect for work in self._works.values() for effect in _tell(work)]

    def hear_own(self, claim: Claim, now: float) -> list[QueueAction]:
        """Our own word comes back, or that of a former life of ours."""
        key, session = claim.key, self._standings.us.session
        work = self._works.get(key)
        if claim.session == session:
            return [ClearClaim(key)] if work is None and key in self._done else []
        if work is None:
            if key in self._owed:
                return []
            if self.is_answered(key):
                return [ClearClaim(key)]
            return self.take(msgspec.structs.replace(claim, session=session), now)
        if claim.generation > work.claim.generation:
            work.claim = msgspec.structs.replace(work.claim, generation=claim.generation)
        return _tell(work)

    def consented(self, node: str, key: str, generation: int) -> list[QueueAction]:
        """Another target agrees to our claim."""
        work = self._works.get(key)
        if work is None or work.claim.generation != generation:
            return []
        work.waiting.discard(node)
        return self._start_if_free(work)

    def overdue(self, now: float) -> set[str]:
        """Whose consent was waited for long enough."""
        works = self._works.values()
        return {node for work in works if work.until <= now for node in work.waiting}

    def go_without(self, nodes: Iterable[str]) -> list[QueueAction]:
        """Wait for the consent of these no more."""
        effects: list[QueueAction] = []
        for work in self._works.values():
            if work.waiting:
                work.waiting.difference_update(nodes)
                effects += self._start_if_free(work)
        return effects

    def ask_again(self, now: float) -> list[QueueAction]:
        """A connection stands anew: whoever is there is asked again for all that is ours."""
        for work in self._works.values():
            work.waiting, work.until = self._standings.to_ask(), now + CONSENT_S
        effects = [] if self._standings.is_alone else self.tell_all()
        for work in self._works.values():
            effects += self._start_if_free(work)
        return effects

    def owe(self, key: str) -> None:
        """Our former life has answered a request, and the broker may not have the answer."""
        self._owed[key] = False

    def owes(self, key: str) -> bool:
        """Whether that is so."""
        return key in self._owed

    def insist(self, ticket: ReplyAddress) -> list[QueueAction]:
        """Another target claims what our former life has answered, so it did not answer it."""
        self._owed[ticket.key] = True
        return [PublishKnown(ticket)]

    def settle_owed(self, claimed: Collection[str], *, is_remembered: bool) -> list[QueueAction]:
        """All that the broker holds has come, with claims to these requests."""
        effects: list[QueueAction] = []
        is_alone = self._standings.is_alone
        for key, is_ours in list(self._owed.items()):
            # Where others are, what was ours is on the broker, unless one of them has answered.
            if is_ours or is_alone or not is_remembered or key in claimed:
                self._owed[key] = True
            else:
                del self._owed[key]
                effects.append(AbandonRequest(key))
        return effects

    def _start_if_free(self, work: _Work) -> list[QueueAction]:
        if work.is_started or work.waiting or not self._standings.is_joined:
            return []
        work.is_started = True
        return [StartRequest(work.claim)]


def _tell(work: _Work) -> list[QueueAction]:
    work.is_told = True
    return [PublishClaim(work.claim)]
