"""Requests that another target is to claim, kept until it has. Pure and bounded.

Requests without an id are called otherwise by each target that hears them, so those are matched
with claims by their bodies, in whatever order the two come.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import ReplyAddress


class UnclaimedRequests:
    """What was heard and not yet claimed."""

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[str, tuple[Claim, float]] = OrderedDict()
        self._unnamed: dict[bytes, list[str]] = {}
        """Our names of requests that have none, by their bodies' digests."""
        self._claimed: Counter[bytes] = Counter()
        """Claims to such requests that we have not heard yet."""

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> list[tuple[Claim, float]]:
        """What we would claim, and since when it waits; oldest first."""
        return list(self._kept.values())

    def keep(self, claim: Claim, now: float) -> None:
        """Another target is to claim this."""
        self._kept[claim.key] = (claim, now)
        if not claim.ticket.is_named:
            self._unnamed.setdefault(claim.ticket.digest, []).append(claim.key)
        if len(self._kept) > self._max_kept:
            self.drop(next(iter(self._kept)))

    def is_claimed(self, ticket: ReplyAddress) -> bool:
        """Whether a request without an id was claimed before we heard it; true once a claim."""
        if ticket.is_named or not self._claimed[ticket.digest]:
            return False
        self._claimed[ticket.digest] -= 1
        return True

    def claim(self, ticket: ReplyAddress) -> None:
        """A target has claimed a request."""
        if ticket.is_named:
            self.drop(ticket.key)
            return
        if self.settle(ticket.key, ticket.digest):
            return
        self._claimed[ticket.digest] += 1
        if len(self._claimed) > self._max_kept:
            self._claimed.clear()

    def settle(self, key: str, digest: bytes) -> bool:
        """A target has a request, under this or another name; whether we have heard it."""
        if self.drop(key):
            return True
        ours = self._unnamed.get(digest)
        return ours is not None and self.drop(ours[0])

    def drop(self, key: str) -> bool:
        """Forget a request; whether it was kept."""
        if (kept := self._kept.pop(key, None)) is None:
            return False
        digest = kept[0].ticket.digest
        if (ours := self._unnamed.get(digest)) is not None and key in ours:
            ours.remove(key)
            if not ours:
                del self._unnamed[digest]
        return True
