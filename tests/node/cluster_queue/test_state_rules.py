"""Rules of one queue state when a request moves from one target to another."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from edgecosine.balance.rendezvous_hash import chosen
from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    AcknowledgeClaim,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    StartRequest,
)
from edgecosine.node.cluster_queue.own_claims import ACK_TIMEOUT_S
from edgecosine.node.cluster_queue.peer_claims import rank
from edgecosine.node.cluster_queue.state import UNCLAIMED_S, QueueState
from tests.node.cluster_queue.claims import claim, status, ticket

KEYS = [f"u/{number}" for number in range(24)]


def queue_state(*others: str, answered: frozenset[str] = frozenset()) -> QueueState:
    """Our state beside these ready targets, at 0 s."""
    queue_state = QueueState(status("a"), has_finished=answered.__contains__)
    for node in others:
        queue_state.on_status(status(node), 0.0)
    queue_state.join(0.0, is_remembered=True)
    return queue_state


def falling_to(node: str, *nodes: str) -> str:
    return next(key for key in KEYS if chosen(key, nodes) == node)


def test_lower_claim_is_dropped_and_the_higher_one_republished() -> None:
    here = queue_state("b")
    key = next(key for key in KEYS if rank(claim("a", key)) < rank(claim("b", key)))
    here.own.claim(claim("a", key), 0.0)
    theirs = claim("b", key)
    assert here.on_claim(theirs, 0.0) == [
        AbandonRequest(key),
        PublishClaim(theirs),
        AcknowledgeClaim(theirs),
    ]


def test_higher_claim_is_kept_and_republished() -> None:
    here = queue_state("b")
    key = next(key for key in KEYS if rank(claim("a", key)) > rank(claim("b", key)))
    here.own.claim(claim("a", key), 0.0)
    assert here.on_claim(claim("b", key), 0.0) == [PublishClaim(claim("a", key))]
    assert here.on_ack("b", key, 0) == [StartRequest(claim("a", key))]


@pytest.mark.parametrize("is_retained", [False, True])
def test_claim_is_acknowledged_unless_it_is_retained(is_retained: bool) -> None:
    theirs = claim("b")
    actions = queue_state("b").on_claim(theirs, 0.0, is_retained=is_retained)
    assert actions == ([] if is_retained else [AcknowledgeClaim(theirs)])


def test_claim_to_a_finished_request_is_cleared() -> None:
    here = queue_state("b", answered=frozenset({"u/1"}))
    assert here.on_claim(claim("b"), 0.0) == [PublishKnown(ticket()), ClearClaim("u/1")]


def test_claim_to_an_undelivered_final_leaves_it_to_us() -> None:
    here = queue_state("b")
    here.own.expect_delivery("u/1")
    assert not here.own.is_acknowledged("u/1")
    assert here.on_claim(claim("b"), 0.0) == [PublishKnown(ticket())]
    assert here.own.is_acknowledged("u/1")


def test_request_known_elsewhere_is_abandoned_unless_finished_here() -> None:
    here = queue_state("b", answered=frozenset({"u/2"}))
    for key in ("u/1", "u/2"):
        here.own.claim(claim("a", key), 0.0)
    assert here.on_known("u/1", "b", b"body", 0.0) == [AbandonRequest("u/1")]
    assert here.on_known("u/2", "b", b"body", 0.0) == []
    assert here.on_known("u/2", "a", b"body", 0.0) == []


def test_repeat_is_published_to_peers_unless_active() -> None:
    assert queue_state().repeat(ticket()) == []
    here = queue_state("b")
    assert here.repeat(ticket()) == [PublishKnown(ticket())]
    here.own.claim(claim("a"), 0.0)
    assert here.repeat(ticket()) == []


def test_repeated_request_starts_with_its_new_reply_address() -> None:
    here, again = queue_state("b"), ticket(reply_topic="elsewhere")
    here.own.claim(claim("a", "u/1"), 0.0)
    here.on_request(msgspec.structs.replace(claim("a"), ticket=again), 0.0)
    assert here.on_ack("b", "u/1", 0) == [
        StartRequest(msgspec.structs.replace(claim("a"), ticket=again))
    ]


def test_claim_of_a_target_that_left_is_taken_with_the_latest_reply_address() -> None:
    here, again = queue_state("b"), ticket(reply_topic="elsewhere")
    here.on_claim(claim("b"), 0.0)
    here.on_request(msgspec.structs.replace(claim("a"), ticket=again), 0.0)
    taken = msgspec.structs.replace(
        claim("a", generation=1), ticket=again, taken_from="b"
    )  # fmt: skip
    assert here.on_status(status("b", "left"), 0.0) == [StartRequest(taken)]


def test_claims_of_a_target_that_left_go_to_the_chosen_targets() -> None:
    here = queue_state("b", "c")
    for owner in "ac":
        here.on_claim(claim("b", falling_to(owner, "a", "c")), 0.0)
    actions = here.on_status(status("b", "left"), 0.0)
    assert [effect.claim.key for effect in actions if isinstance(effect, PublishClaim)] == [
        falling_to("a", "a", "c")
    ]
    assert len(actions) == 1


def test_request_just_finished_elsewhere_is_not_kept() -> None:
    here, key = queue_state("b"), falling_to("b", "a", "b")
    here.on_claim(claim("b", key), 0.0)
    here.on_claim_cleared(key, 0.0)
    here.on_request(claim("a", key), UNCLAIMED_S / 2)
    assert not here.is_open(key)
    here.on_request(claim("a", key), UNCLAIMED_S)
    assert here.is_open(key)


def test_draining_target_claims_if_no_other_is_ready() -> None:
    here, key = queue_state("b"), falling_to("b", "a", "b")
    here.set_status("draining", 0.0)
    here.on_request(claim("a", key), 0.0)
    assert here.on_tick(UNCLAIMED_S) == []
    assert here.is_open(key)
    assert here.on_status(status("b", "unavailable"), UNCLAIMED_S) == [
        PublishClaim(claim("a", key))
    ]


@pytest.mark.parametrize("state", ["left", "lost"])
def test_ack_of_a_gone_target_is_not_needed(state: str) -> None:
    here = queue_state("b", "c")
    here.own.claim(claim("a"), 0.0)
    assert here.on_ack("c", "u/1", 0) == []
    gone = msgspec.structs.replace(status("b"), state=state)
    assert here.on_status(gone, 0.0) == [StartRequest(claim("a"))]


def test_ack_of_an_unresponsive_target_is_not_needed() -> None:
    here = queue_state("b")
    here.own.claim(claim("a", "u/1"), 0.0)
    assert here.on_tick(ACK_TIMEOUT_S) == [StartRequest(claim("a", "u/1"))]
    assert here.own.claim(claim("a", "u/2"), 1.0) == [
        PublishClaim(claim("a", "u/2")),
        StartRequest(claim("a", "u/2")),
    ]


def test_request_without_an_id_is_matched_by_its_digest() -> None:
    here = queue_state("b")
    unnamed = dataclasses.replace(ticket(falling_to("b", "a", "b")), is_named=False)
    digest = next(
        bytes([number]) for number in range(99) if chosen(bytes([number]).hex(), "ab") == "b"
    )
    unnamed = dataclasses.replace(unnamed, digest=digest)
    here.on_request(msgspec.structs.replace(claim("a", unnamed.key), ticket=unnamed), 0.0)
    assert here.is_open(unnamed.key)
    here.on_known("anon/theirs", "b", digest, 0.0)
    assert not here.is_open(unnamed.key)


def test_claim_that_is_no_longer_retained_is_not_taken() -> None:
    here = queue_state("b")
    here.on_claim(claim("b"), 0.0)
    here.on_connected(0.0)
    here.on_status(status("b", "left"), 0.0)
    assert here.join(0.0, is_remembered=True) == []
