"""Messages between the targets of a cluster, by which one of them claims each request.

The claim is retained on the request's work topic until the final message was delivered. It contains
everything that determines the answer, and at last the final message itself.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgecosine.errors import ConfigError
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestTicket
from edgecosine.protocol.api.topics import Topics

MembershipState = Literal["ready", "unavailable", "draining", "left", "lost"]
"""`left` is sent by the target itself, `lost` by its will."""

KEEP_MEMBERSHIP_S: Final = 3600
"""Expiry of a target's retained membership status, in seconds."""
KEEP_CLAIM_S: Final = 86400
"""Expiry of a retained claim, in seconds."""


class MembershipStatus(msgspec.Struct, frozen=True):
    """A target's membership status. `session` identifies one process.

    identity  what its texts depend on: only targets of one identity share requests
    since     start of the process, in seconds since 1970
    """

    node: str
    session: str
    identity: str
    model: str
    since: float
    state: MembershipState


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """A target's claim to a request.

    generation  number of takeovers; of two claims the later generation counts
    taken_from  the target that claimed it before, or empty
    asked_s     first acceptance, in seconds since 1970
    end         how the request ended, published before its final is sent; None while it runs
    """

    node: str
    session: str
    ticket: RequestTicket
    request: Request
    asked_s: float
    generation: int = 0
    taken_from: str = ""
    end: RequestEnd | None = None

    @property
    def key(self) -> str:
        """The request's name in the whole cluster."""
        return self.ticket.key


class KnownRequest(msgspec.Struct, frozen=True, tag="known"):
    """A target has answered or refused the request, so that others need not.

    digest  of a request without an id, which has another name at each target; else empty
    """

    node: str
    digest: bytes


class ClaimAck(msgspec.Struct, frozen=True, tag="consent"):
    """A target acknowledges that another one's claim conflicts with none that it knows."""

    node: str
    key: str
    generation: int


class Echo(msgspec.Struct, frozen=True, tag="echo"):
    """A target's message to itself, which proves that earlier ones were delivered."""

    session: str
    number: int


class StatusRequest(msgspec.Struct, frozen=True, tag="call"):
    """Requests a new membership status from a target known by a retained one only."""

    node: str


_encode = msgspec.msgpack.Encoder().encode
_membership_of = msgspec.msgpack.Decoder(MembershipStatus).decode
_work: msgspec.msgpack.Decoder[Claim | KnownRequest] = msgspec.msgpack.Decoder(Claim | KnownRequest)
_inbox: msgspec.msgpack.Decoder[ClaimAck | Echo | StatusRequest] = msgspec.msgpack.Decoder(
    ClaimAck | Echo | StatusRequest
)


def membership_notice(topics: Topics, status: MembershipStatus) -> Outgoing:
    """The retained publication of a target's membership status."""
    topic = topics.membership(status.node)
    return Outgoing(topic, _encode(status), retain=True, expiry_s=KEEP_MEMBERSHIP_S)


def claim_notice(topics: Topics, claim: Claim) -> Outgoing:
    """The retained publication of a claim."""
    topic = topics.work(claim.ticket.client_id, claim.ticket.request_id)
    return Outgoing(topic, _encode(claim), retain=True, expiry_s=KEEP_CLAIM_S)


def clearance(topics: Topics, client_id: str, request_id: str) -> Outgoing:
    """The publication that clears a claim."""
    return Outgoing(topics.work(client_id, request_id), b"", retain=True)


def known_notice(topics: Topics, ticket: RequestTicket, node_id: str) -> Outgoing:
    """The publication that a request was answered or refused."""
    topic = topics.work(ticket.client_id, ticket.request_id)
    digest = b"" if ticket.is_named else ticket.digest
    return Outgoing(topic, _encode(KnownRequest(node_id, digest)))


def inbox_note(topics: Topics, node_id: str, note: ClaimAck | Echo | StatusRequest) -> Outgoing:
    """A publication for one target, QoS 0: a lost one is repeated."""
    return Outgoing(topics.inbox(node_id), _encode(note), qos=0)


def read_membership(payload: bytes) -> MembershipStatus | None:
    """Parse a membership status; None when it is unreadable, as from another version."""
    try:
        return _membership_of(payload)
    except msgspec.MsgspecError:
        return None


def read_work(payload: bytes) -> Claim | KnownRequest | None:
    """Parse a message of a work topic; None when it is unreadable."""
    try:
        return _work.decode(payload)
    except msgspec.MsgspecError:
        return None


def read_note(payload: bytes) -> ClaimAck | Echo | StatusRequest | None:
    """Parse a message of a target's inbox; None when it is unreadable."""
    try:
        return _inbox.decode(payload)
    except msgspec.MsgspecError:
        return None


def other_model(cluster: str, node_id: str, model: str) -> ConfigError:
    """The error for a target whose model differs from that of another target."""
    allowed = (
        f"a cluster whose targets serve one model, in one dtype and one way; {node_id} serves "
        f"{model} otherwise: stop it or choose another --cluster"
    )
    return ConfigError("cluster", cluster, allowed)
