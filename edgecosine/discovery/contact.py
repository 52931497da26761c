"""A node that may be dialled, with its claimed and proven addresses.

Announcements are not authenticated. So a new one removes no address of an earlier one, nor a proven
address: a dial tries all of them, and the node that answers proves its identity.
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
    """An announced node, or a static address.

    advert     the current advert; None for a static address
    endpoints  announced addresses, the current advert's first
    proven     the endpoints at the last successful dial
    has_left   whether a good-bye was received in its name
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
        """Whether its address is static, or a dial has reached it before."""
        return self.advert is None or bool(self.proven)

    @property
    def is_given_up(self) -> bool:
        """Whether a good-bye was received in its name and dials fail."""
        return self.has_left and self.attempts >= MAX_DIALS_AFTER_GOODBYE

    @property
    def is_spare(self) -> bool:
        """Whether it may be dropped for another one: its dials failed, or are not needed."""
        return not self.is_known and (self.attempts > 0 or self.state in ("refused", "left out"))

    def also_at(self, endpoints: tuple[Address, ...]) -> None:
        """Add endpoints of an earlier advert, up to the limit."""
        self.endpoints = tuple(dict.fromkeys((*self.endpoints, *endpoints)))[:MAX_ENDPOINTS]

    def prove(self) -> None:
        """Record that a dial has reached the node."""
        self.proven = self.endpoints[:MAX_ADDRESSES]

    def where(self, *, is_linked: bool) -> tuple[Address, ...]:
        """Endpoints to dial: new ones while linked, otherwise the proven ones first."""
        first, then = (self.endpoints, ()) if is_linked else (self.proven, self.endpoints)
        return tuple(dict.fromkeys((*first, *then)))


def mismatch_of(ours: Hello, advert: Advert, *, dials_seen: bool) -> tuple[PeerState, str] | None:
    """Why an announced node is not dialled, as a state and a reason; None if it is."""
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
