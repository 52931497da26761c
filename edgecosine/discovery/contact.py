"""Somebody whom we may dial, and where: what is claimed about it, and what has proved true.

Anybody can announce any name. So no claim takes away what another one told, or what led to the
node before: a dial tries them all, and the node that answers proves who it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgecosine.discovery.events import PeerState
from edgecosine.discovery.peer import MAX_ADDRESSES, Address, Advert
from edgecosine.protocol.wire.messages import Hello

MAX_ENDPOINTS: Final = 2 * MAX_ADDRESSES
MAX_DIALS_AFTER_GOODBYE: Final = 3


@dataclass(slots=True)
class Contact:
    """An advert's node, or a static address.

    advert     the claim that counts; None of a static address
    endpoints  where the claims say that it is, the one that counts first
    proven     where they said so when a dial led to the node
    has_left   whether a good-bye was said in its name
    """

    key: str
    endpoints: tuple[Address, ...]
    advert: Advert | None = None
    node_id: str | None = None
    state: PeerState = "waiting"
    reason: str = "not dialled yet"
    attempts: int = 0
    dial_at: float = -math.inf
    dialled_at: float = -math.inf
    seen_at: float = -math.inf
    has_left: bool = False
    proven: tuple[Address, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether an operator named it, or a dial has led to it before."""
        return self.advert is None or bool(self.proven)

    @property
    def is_given_up(self) -> bool:
        """Whether a good-bye was said in its name and nobody answers any more."""
        return self.has_left and self.attempts >= MAX_DIALS_AFTER_GOODBYE

    @property
    def is_spare(self) -> bool:
        """Whether it may make room for others: it was tried in vain, or need not be tried."""
        return not self.is_known and (self.attempts > 0 or self.state in ("refused", "left out"))

    def also_at(self, endpoints: tuple[Address, ...]) -> None:
        """Another claim says that the node is there; the newest ones are kept."""
        self.endpoints = tuple(dict.fromkeys((*self.endpoints, *endpoints)))[:MAX_ENDPOINTS]

    def prove(self) -> None:
        """A dial has led to the node."""
        self.proven = self.endpoints[:MAX_ADDRESSES]

    def where(self, *, is_linked: bool) -> tuple[Address, ...]:
        """Where to dial: beside a link only a new place is of interest, else the proven one is."""
        first, then = (self.endpoints, ()) if is_linked else (self.proven, self.endpoints)
        return tuple(dict.fromkeys((*first, *then)))


def mismatch_of(ours: Hello, advert: Advert, *, dials_seen: bool) -> tuple[PeerState, str] | None:
    """Why a node is not ours to dial, from what is announced; None when it is."""
    if advert.protocol != ours.protocol:
        reason = f"protocol {advert.protocol} there, {ours.protocol} here: install one release"
        return "refused", reason
    if advert.cluster != ours.cluster:
        return "refused", f"cluster {advert.cluster} there, {ours.cluster} here"
    if advert.role == ours.role:
        return "left out", f"is a {advert.role} too"
    if not dials_seen:
        return "left out", f"a {ours.role} waits to be dialled"
    return None
