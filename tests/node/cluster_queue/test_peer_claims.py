"""Which claims of other targets count, and which requests those have settled."""

from __future__ import annotations

import pytest

from edgecosine.node.cluster_queue.members import GRACE_S
from edgecosine.node.cluster_queue.peer_claims import MAX_KEPT, PeerClaims, rank
from edgecosine.protocol.api.claim_messages import Claim
from tests.node.cluster_queue.claims import KEY, claim, joined, status, ticket

LATER_S = 2 * GRACE_S


def abandoned(theirs: PeerClaims) -> list[Claim]:
    return theirs.abandoned(LATER_S)


@pytest.mark.parametrize("is_in_order", [False, True])
def test_higher_claim_counts_in_either_order(is_in_order: bool) -> None:
    members = joined("b", "c")
    theirs = PeerClaims(members)
    low, high = sorted([claim("b"), claim("c")], key=rank)
    for each in (low, high) if is_in_order else (high, low):
        theirs.add(each, 0.0)
    for node in "bc":
        members.update(status(node, "left"), 0.0)
    assert abandoned(theirs) == [high]


def test_later_generation_outranks_any_claimant() -> None:
    low, high = sorted([claim("b"), claim("c")], key=rank)
    assert rank(claim(low.node, generation=1)) > rank(high)


def test_lower_claim_counts_if_the_other_claimant_is_gone() -> None:
    low, high = sorted([claim("b"), claim("c")], key=rank)
    members = joined(low.node, high.node)
    theirs = PeerClaims(members)
    theirs.add(high, 0.0)
    members.update(status(high.node, "left"), 0.0)
    theirs.add(low, 0.0)
    assert abandoned(theirs) == []
    assert KEY in theirs


def test_repeated_request_is_handed_over_with_its_new_reply_address() -> None:
    theirs = PeerClaims(joined())
    theirs.add(claim("b"), 0.0)
    theirs.renew(ticket(reply_topic="elsewhere"))
    theirs.renew(ticket(digest=b"another body", reply_topic="nowhere"))
    [found] = abandoned(theirs)
    assert found.ticket == ticket(reply_topic="elsewhere")


@pytest.mark.parametrize("is_cleared", [False, True])
def test_settled_request_is_unclaimed_and_known_for_a_while(is_cleared: bool) -> None:
    members = joined("b")
    theirs = PeerClaims(members)
    theirs.add(claim("b"), 0.0)
    if is_cleared:
        theirs.clear(KEY, 1.0)
    else:
        theirs.settle(KEY, "b", 1.0)
    assert KEY not in theirs
    assert theirs.is_settled(KEY, 0.5)
    assert not theirs.is_settled(KEY, 1.0)
    members.update(status("b", "left"), 1.0)
    assert not theirs.is_settled(KEY, 0.5)


def test_request_refused_by_one_target_may_be_claimed_by_another() -> None:
    theirs = PeerClaims(joined("b", "c"))
    theirs.add(claim("b"), 0.0)
    theirs.settle(KEY, "c", 0.0)
    assert KEY in theirs


def test_claims_that_are_no_longer_retained_are_forgotten() -> None:
    theirs = PeerClaims(joined("b"))
    for key in ("u/1", "u/2"):
        theirs.add(claim("b", key), 0.0)
    theirs.keep_only({"u/2", "u/3"})
    assert ("u/1" in theirs, "u/2" in theirs, len(theirs)) == (False, True, 1)


def test_oldest_claim_is_evicted() -> None:
    theirs = PeerClaims(joined("b"))
    for number in range(MAX_KEPT + 1):
        theirs.add(claim("b", f"u/{number}"), 0.0)
    assert ("u/0" in theirs, len(theirs)) == (False, MAX_KEPT)
