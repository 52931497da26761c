"""Claims and standings of targets called a, b, c; `a` is we."""

from __future__ import annotations

from edgecosine.node.cluster_queue.members import Members
from edgecosine.protocol.api.claim_messages import Claim, MembershipStatus, StandingState
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import ReplyAddress

KEY = "u/1"


def standing(node: str, state: StandingState = "ready", life: int = 0) -> MembershipStatus:
    return MembershipStatus(node, f"{node}{life}", "x", "m", 0.0, state)


def ticket(key: str = KEY, *, digest: bytes = b"body", reply_topic: str = "r") -> ReplyAddress:
    client, request_id = key.split("/")
    return ReplyAddress(client, request_id, "completion", reply_topic, digest=digest)


def claim(node: str, key: str = KEY, *, life: int = 0, generation: int = 0) -> Claim:
    of = ticket(key)
    request = Request(of.client_id, of.request_id, "completion", "")
    return Claim(node, f"{node}{life}", of, request, 0.0, generation)


def joined(*others: str) -> Members:
    """Ours, beside these, who are ready, at 0 s."""
    standings = Members(standing("a"))
    for node in others:
        standings.update(standing(node), 0.0)
    standings.join(0.0)
    return standings
