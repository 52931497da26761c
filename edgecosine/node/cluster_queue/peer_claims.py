"""What the other targets have of the queue: what they claim, and what they have done lately.

Pure and bounded; times are seconds of any steady clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, TypeVar

import msgspec

from edgecosine.balance.rendezvous_hash import weight
from edgecosine.node.cluster_queue.members import Members
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import ReplyAddress

MAX_KEPT: Final = 4096

V = TypeVar("V")


class PeerClaims:
    """The claims of others that count, and who has settled which request."""

    def __init__(self, standings: Members) -> None:
        self._standings = standings
        self._claims: OrderedDict[str, Claim] = OrderedDict()
        self._settled: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Requests that others have done, by whom and when."""

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def put(self, claim: Claim, now: float) -> None:
        """Another target claims a request."""
        before = self._claims.get(claim.key)
        # A lesser claim is given up by whoever made it, as soon as it hears of the other.
        if before is None or rank(claim) >= rank(before) or self._standings.is_gone(before, now):
            _put(self._claims, claim.key, claim)
        self._standings.meet(claim.node, now)

    def renew(self, ticket: ReplyAddress) -> None:
        """A request that another target claims came again, maybe with another body."""
        claim = self._claims[ticket.key]
        if claim.ticket.digest == ticket.digest:
            self._claims[ticket.key] = msgspec.structs.replace(claim, ticket=ticket)

    def clear(self, key: str, now: float) -> None:
        """The claim was cleared, for who made it has done the request."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            _put(self._settled, key, (claim.node, now))

    def settle(self, key: str, node: str, now: float) -> None:
        """A target has answered a request, or refused it."""
        _put(self._settled, key, (node, now))
        if (claim := self._claims.get(key)) is not None and claim.node == node:
            del self._claims[key]

    def is_settled(self, key: str, after: float) -> bool:
        """Whether a target that is there has done a request, after a moment."""
        node, when = self._settled.get(key, ("", after))
        return when > after and node in self._standings.others

    def abandoned(self, now: float) -> list[Claim]:
        """What nobody works on any more."""
        return [claim for claim in self._claims.values() if self._standings.is_gone(claim, now)]

    def drop(self, key: str) -> None:
        """The request is no other target's any more."""
        del self._claims[key]

    def keep_only(self, keys: Collection[str]) -> None:
        """The broker holds claims to these requests alone."""
        for key in self._claims.keys() - keys:
            del self._claims[key]


def rank(claim: Claim) -> tuple[int, bytes]:
    """Of two claims to one request the higher one counts; those of two targets are never equal."""
    return claim.generation, weight(claim.key, claim.node)


def _put(entries: OrderedDict[str, V], key: str, value: V) -> None:
    entries[key] = value
    if len(entries) > MAX_KEPT:
        entries.popitem(last=False)
