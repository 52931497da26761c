"""What happens to the roster, what it wants done, and how it explains itself: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecosine.discovery.peer import Address, Advert

PeerState = Literal["linked", "dialling", "waiting", "refused", "left out"]
"""Where a peer stands: refused is a mismatch, left out is as it should be."""


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """mDNS told about a node, or something new about it."""

    advert: Advert


@dataclass(frozen=True, slots=True)
class PeerGone:
    """mDNS says that a node has said good-bye."""

    node_id: str


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is ready; `contact` is that of our dial, None when the peer dialled."""

    node_id: str
    incarnation: int
    contact: str | None = None


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The last link to a node ended; `is_disconnect` when the node itself said that it ends."""

    node_id: str
    reason: str
    is_disconnect: bool = False


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial came to nothing; `is_final` when the peer can never be linked as it is."""

    contact: str
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event = PeerSeen | PeerGone | LinkUp | LinkDown | DialFailed | Ticked


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial a contact; `node_id` is who should be there, None when nobody knows.

    Who is known was there before, or was named by an operator; others are only said to be there.
    """

    contact: str
    endpoints: tuple[Address, ...]
    node_id: str | None
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """A peer is not linked, for a reason not told before."""

    contact: str
    reason: str
    state: PeerState


RosterAction = Dial | Explained


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a peer stands, for status and doctor."""

    peer: str
    state: PeerState
    reason: str
    endpoints: tuple[Address, ...] = ()
    is_foreign: bool = False
    """Whether it was only announced, and for another cluster."""
