"""Events, actions and explanations of the roster, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecosine.discovery.peer import Address, Advert

PeerState = Literal["linked", "dialling", "waiting", "refused", "left out"]
"""The state of a peer: `refused` for a mismatch, `left out` where no link is intended."""


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """mDNS reports a new or changed advert."""

    advert: Advert


@dataclass(frozen=True, slots=True)
class PeerGone:
    """mDNS reports a node's good-bye."""

    node_id: str


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is ready; `contact` is the one that we dialled, None when the peer dialled."""

    node_id: str
    incarnation: int
    contact: str | None = None


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The last link to a node ended; `is_disconnect` when the node announced the end."""

    node_id: str
    reason: str
    is_disconnect: bool = False


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial failed; `is_final` when the peer's settings rule out a link."""

    contact: str
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event = PeerSeen | PeerGone | LinkUp | LinkDown | DialFailed | Ticked


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial a contact; `node_id` is the expected node, None when it is unknown.

    `is_known` for a static address and for a node that was reached before.
    """

    contact: str
    endpoints: tuple[Address, ...]
    node_id: str | None
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """A peer is not linked, for a new reason."""

    contact: str
    reason: str
    state: PeerState


RosterAction = Dial | Explained


@dataclass(frozen=True, slots=True)
class Explanation:
    """A peer's state and reason, for `status` and `doctor`."""

    peer: str
    state: PeerState
    reason: str
    endpoints: tuple[Address, ...] = ()
    is_foreign: bool = False
    """Whether it announces another cluster."""
