"""What targets of one cluster say to each other, so that each request is answered by one of them.

Retained on a request's work topic is the claim of the target that has taken it, and nothing once
its final message was delivered. A claim holds all that the answer follows from.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgecosine.errors import ConfigError
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import ReplyAddress
from edgecosine.protocol.api.topics import Topics

StandingState = Literal["ready", "unavailable", "draining", "left", "lost"]
"""`left` was said by the target itself, `lost` by the broker in its name."""

KEEP_STANDING_S: Final = 3600
"""After so long a broker forgets a target that says nothing any more."""
KEEP_CLAIM_S: Final = 86400
"""After so long a broker forgets the claim of a cluster that never came back."""


class MembershipStatus(msgspec.Struct, frozen=True):
    """How a target stands. `session` names one life of it, `since` is seconds since 1970.

    identity  what its texts depend on: only targets of one identity share their requests
    """

    node: str
    session: str
    identity: str
    model: str
    since: float
    state: StandingState


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """A target has taken a request.

    generation  how often the request was taken over; of two claims the later generation counts
    taken_from  the target that had it, or empty
    asked_s     when it was let in first, in seconds since 1970
    """

    node: str
    session: str
    ticket: ReplyAddress
    request: Request
    asked_s: float
    generation: int = 0
    taken_from: str = ""

    @property
    def key(self) -> str:
        """The request's name in the whole cluster."""
        return self.ticket.key


class KnownRequest(msgspec.Struct, frozen=True, tag="known"):
    """A target has answered the request, or refused it; nobody else need do so.

    digest  of a request without an id, which others call otherwise; else empty
    """

    node: str
    digest: bytes


class ClaimAck(msgspec.Struct, frozen=True, tag="consent"):
    """A target knows nothing that speaks against another one's claim."""

    node: str
    key: str
    generation: int


class Echo(msgspec.Struct, frozen=True, tag="echo"):
    """A target to itself: what was sent before has been heard."""

    session: str
    number: int


class StatusRequest(msgspec.Struct, frozen=True, tag="call"):
    """A target that knows another one from the broker alone asks it to say how it stands."""

    node: str


_encode = msgspec.msgpack.Encoder().encode
_standing = msgspec.msgpack.Decoder(MembershipStatus).decode
_work: msgspec.msgpack.Decoder[Claim | KnownRequest] = msgspec.msgpack.Decoder(Claim | KnownRequest)
_inbox: msgspec.msgpack.Decoder[ClaimAck | Echo | StatusRequest] = msgspec.msgpack.Decoder(
    ClaimAck | Echo | StatusRequest
)


def standing_notice(topics: Topics, standing: MembershipStatus) -> Outgoing:
    """How a target stands, for all who come later, too."""
    topic = topics.standing(standing.node)
    return Outgoing(topic, _encode(standing), retain=True, expiry_s=KEEP_STANDING_S)


def claim_notice(topics: Topics, claim: Claim) -> Outgoing:
    """A claim, for all who come later, too."""
    topic = topics.work(claim.ticket.client_id, claim.ticket.request_id)
    return Outgoing(topic, _encode(claim), retain=True, expiry_s=KEEP_CLAIM_S)


def clearance(topics: Topics, client_id: str, request_id: str) -> Outgoing:
    """The request is done with."""
    return Outgoing(topics.work(client_id, request_id), b"", retain=True)


def known_notice(topics: Topics, ticket: ReplyAddress, node_id: str) -> Outgoing:
    """A request that one of us has answered or refused."""
    topic = topics.work(ticket.client_id, ticket.request_id)
    digest = b"" if ticket.is_named else ticket.digest
    return Outgoing(topic, _encode(KnownRequest(node_id, digest)))


def inbox_note(topics: Topics, node_id: str, note: ClaimAck | Echo | StatusRequest) -> Outgoing:
    """Something for one target; it is said again where it is lost."""
    return Outgoing(topics.inbox(node_id), _encode(note), qos=0)


def read_standing(payload: bytes) -> MembershipStatus | None:
    """None when it is unreadable, as of another version."""
    try:
        return _standing(payload)
    except msgspec.MsgspecError:
        return None


def read_work(payload: bytes) -> Claim | KnownRequest | None:
    """None when it is unreadable."""
    try:
        return _work.decode(payload)
    except msgspec.MsgspecError:
        return None


def read_note(payload: bytes) -> ClaimAck | Echo | StatusRequest | None:
    """None when it is unreadable."""
    try:
        return _inbox.decode(payload)
    except msgspec.MsgspecError:
        return None


def other_model(cluster: str, node_id: str, model: str) -> ConfigError:
    """Why a target cannot serve beside another one."""
    allowed = (
        f"a cluster whose targets serve one model, in one dtype and one way; {node_id} serves "
        f"{model} otherwise here: stop it or choose another --cluster"
    )
    return ConfigError("cluster", cluster, allowed)
