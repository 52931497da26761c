"""Claims and statuses of targets named a, b and c; `a` is this target."""

from __future__ import annotations

from edgecosine.node.cluster_queue.members import Members
from edgecosine.protocol.api.claim_messages import Claim, MembershipState, MembershipStatus
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestTicket

KEY = "u/1"


def status(node: str, state: MembershipState = "ready", life: int = 0) -> MembershipStatus:
    return MembershipStatus(node, f"{node}{life}", "x", "m", 0.0, state)


def ticket(key: str = KEY, *, digest: bytes = b"body", reply_topic: str = "r") -> RequestTicket:
    client, request_id = key.split("/")
    return RequestTicket(client, request_id, "completion", reply_topic, digest=digest)


def claim(node: str, key: str = KEY, *, life: int = 0, generation: int = 0) -> Claim:
    of = ticket(key)
    request = Request(of.client_id, of.request_id, "completion", "")
    return Claim(node, f"{node}{life}", of, request, 0.0, generation)


def joined(*others: str) -> Members:
    """Our claims beside these ready targets, at 0 s."""
    members = Members(status("a"))
    for node in others:
        members.update(status(node), 0.0)
    members.join(0.0)
    return members
