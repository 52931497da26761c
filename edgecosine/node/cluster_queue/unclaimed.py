"""Requests that another target has to claim, kept until it does. Pure and bounded.

Each target gives a request without an id another name. Such requests are matched with claims by the
digest of their bodies, in whichever order the two arrive.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import RequestTicket


class UnclaimedRequests:
    """At most `max_kept` requests that were received and not yet claimed."""

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[str, tuple[Claim, float]] = OrderedDict()
        self._unnamed: dict[bytes, list[str]] = {}
        """Our keys of requests without an id, by the digest of the body."""
        self._early_claims: Counter[bytes] = Counter()
        """Claims to requests without an id that came before the request, by digest."""

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> list[tuple[Claim, float]]:
        """Return the claims that we would make and the times of the requests, oldest first."""
        return list(self._kept.values())

    def add(self, claim: Claim, now: float) -> None:
        """Add a request, by the claim that we would make."""
        self._kept[claim.key] = (claim, now)
        if not claim.ticket.is_named:
            self._unnamed.setdefault(claim.ticket.digest, []).append(claim.key)
        if len(self._kept) > self._max_kept:
            self.drop(next(iter(self._kept)))

    def use_early_claim(self, ticket: RequestTicket) -> bool:
        """Whether a request without an id was claimed before it arrived; uses up that claim."""
        if ticket.is_named or not self._early_claims[ticket.digest]:
            return False
        self._early_claims[ticket.digest] -= 1
        return True

    def on_claim(self, ticket: RequestTicket) -> None:
        """Remove a request that a target has claimed."""
        if ticket.is_named:
            self.drop(ticket.key)
            return
        if self.settle(ticket.key, ticket.digest):
            return
        self._early_claims[ticket.digest] += 1
        if len(self._early_claims) > self._max_kept:
            self._early_claims.clear()

    def settle(self, key: str, digest: bytes) -> bool:
        """Remove a request by its key or else its digest. Returns whether it was kept."""
        if self.drop(key):
            return True
        ours = self._unnamed.get(digest)
        return ours is not None and self.drop(ours[0])

    def drop(self, key: str) -> bool:
        """Remove a request. Returns whether it was kept."""
        if (kept := self._kept.pop(key, None)) is None:
            return False
        digest = kept[0].ticket.digest
        if (ours := self._unnamed.get(digest)) is not None and key in ours:
            ours.remove(key)
            if not ours:
                del self._unnamed[digest]
        return True
