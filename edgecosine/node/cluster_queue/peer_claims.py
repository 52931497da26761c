"""The claims of the other targets, and the requests that they finished lately.

Pure and bounded. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, TypeVar

import msgspec

from edgecosine.balance.rendezvous_hash import weight
from edgecosine.node.cluster_queue.members import Members
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import RequestTicket

MAX_KEPT: Final = 4096

V = TypeVar("V")


class PeerClaims:
    """The valid claims of the other targets, by key."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._claims: OrderedDict[str, Claim] = OrderedDict()
        self._settled: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Requests that others finished or refused: the target and the time."""

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: Claim, now: float) -> None:
        """Add a claim, unless a better one is known."""
        before = self._claims.get(claim.key)
        # The target of a lesser claim gives it up when it receives the better one.
        if before is None or rank(claim) >= rank(before) or self._members.is_gone(before, now):
            _put(self._claims, claim.key, claim)
        self._members.add_claimant(claim.node, now)

    def renew(self, ticket: RequestTicket) -> None:
        """Update the reply address of a repeated request, if it has the same body."""
        claim = self._claims[ticket.key]
        if claim.ticket.digest == ticket.digest:
            self._claims[ticket.key] = msgspec.structs.replace(claim, ticket=ticket)

    def clear(self, key: str, now: float) -> None:
        """Remove a claim that its target cleared because it finished the request."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            _put(self._settled, key, (claim.node, now))

    def settle(self, key: str, node: str, now: float) -> None:
        """Record that a target has finished or refused a request."""
        _put(self._settled, key, (node, now))
        if (claim := self._claims.get(key)) is not None and claim.node == node:
            del self._claims[key]

    def is_settled(self, key: str, after: float) -> bool:
        """Whether a connected target has finished or refused a request after a moment."""
        node, when = self._settled.get(key, ("", after))
        return when > after and node in self._members.others

    def abandoned(self, now: float) -> list[Claim]:
        """Return the claims of targets that are gone."""
        return [claim for claim in self._claims.values() if self._members.is_gone(claim, now)]

    def drop(self, key: str) -> None:
        """Remove a claim that another one replaces."""
        del self._claims[key]

    def keep_only(self, keys: Collection[str]) -> None:
        """Remove all claims but those to these keys."""
        for key in self._claims.keys() - keys:
            del self._claims[key]


def rank(claim: Claim) -> tuple[int, bytes]:
    """Return the rank of a claim. The highest claim to a request counts; two are never equal."""
    return claim.generation, weight(claim.key, claim.node)


def _put(entries: OrderedDict[str, V], key: str, value: V) -> None:
    entries[key] = value
    if len(entries) > MAX_KEPT:
        entries.popitem(last=False)
