"""What one book decides when a request passes from one target to another."""

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
from tests.node.cluster_queue.claims import claim, standing, ticket

KEYS = [f"u/{number}" for number in range(24)]


def book(*others: str, answered: frozenset[str] = frozenset()) -> QueueState:
    """Ours, beside these, who are ready, at 0 s."""
    book = QueueState(standing("a"), has_finished=answered.__contains__)
    for node in others:
        book.on_status(standing(node), 0.0)
    book.join(0.0, is_remembered=True)
    return book


def falling_to(node: str, *nodes: str) -> str:
    return next(key for key in KEYS if chosen(key, nodes) == node)


def test_lesser_claim_is_given_up_and_the_greater_one_told_again() -> None:
    here = book("b")
    key = next(key for key in KEYS if rank(claim("a", key)) < rank(claim("b", key)))
    here.own.claim(claim("a", key), 0.0)
    theirs = claim("b", key)
    assert here.on_claim(theirs, 0.0) == [
        AbandonRequest(key),
        PublishClaim(theirs),
        AcknowledgeClaim(theirs),
    ]


def test_greater_claim_is_kept_and_told_again() -> None:
    here = book("b")
    key = next(key for key in KEYS if rank(claim("a", key)) > rank(claim("b", key)))
    here.own.claim(claim("a", key), 0.0)
    assert here.on_claim(claim("b", key), 0.0) == [PublishClaim(claim("a", key))]
    assert here.on_ack("b", key, 0) == [StartRequest(claim("a", key))]


@pytest.mark.parametrize("is_retained", [False, True])
def test_claim_is_consented_to_unless_it_was_made_before_we_came(is_retained: bool) -> None:
    theirs = claim("b")
    effects = book("b").on_claim(theirs, 0.0, is_retained=is_retained)
    assert effects == ([] if is_retained else [AcknowledgeClaim(theirs)])


def test_claim_to_what_was_answered_here_is_cleared() -> None:
    here = book("b", answered=frozenset({"u/1"}))
    assert here.on_claim(claim("b"), 0.0) == [PublishKnown(ticket()), ClearClaim("u/1")]


def test_claim_to_what_our_former_life_has_answered_leaves_the_answer_to_us() -> None:
    here = book("b")
    here.own.expect_delivery("u/1")
    assert not here.own.is_acknowledged("u/1")
    assert here.on_claim(claim("b"), 0.0) == [PublishKnown(ticket())]
    assert here.own.is_acknowledged("u/1")


def test_what_another_target_knows_is_given_up_unless_it_was_answered_here() -> None:
    here = book("b", answered=frozenset({"u/2"}))
    for key in ("u/1", "u/2"):
        here.own.claim(claim("a", key), 0.0)
    assert here.on_known("u/1", "b", b"body", 0.0) == [AbandonRequest("u/1")]
    assert here.on_known("u/2", "b", b"body", 0.0) == []
    assert here.on_known("u/2", "a", b"body", 0.0) == []


def test_repeat_is_told_of_where_others_are_and_it_is_not_at_work() -> None:
    assert book().repeat(ticket()) == []
    here = book("b")
    assert here.repeat(ticket()) == [PublishKnown(ticket())]
    here.own.claim(claim("a"), 0.0)
    assert here.repeat(ticket()) == []


def test_request_that_comes_again_is_answered_as_its_asker_wishes_by_now() -> None:
    here, again = book("b"), ticket(reply_topic="elsewhere")
    here.own.claim(claim("a", "u/1"), 0.0)
    here.on_request(msgspec.structs.replace(claim("a"), ticket=again), 0.0)
    assert here.on_ack("b", "u/1", 0) == [
        StartRequest(msgspec.structs.replace(claim("a"), ticket=again))
    ]


def test_claim_of_who_left_is_taken_under_the_ticket_that_came_last() -> None:
    here, again = book("b"), ticket(reply_topic="elsewhere")
    here.on_claim(claim("b"), 0.0)
    here.on_request(msgspec.structs.replace(claim("a"), ticket=again), 0.0)
    taken = msgspec.structs.replace(
        claim("a", generation=1), ticket=again, taken_from="b"
    )  # fmt: skip
    assert here.on_status(standing("b", "left"), 0.0) == [StartRequest(taken)]


def test_claim_of_who_left_is_left_to_whom_the_choice_names() -> None:
    here = book("b", "c")
    for owner in "ac":
        here.on_claim(claim("b", falling_to(owner, "a", "c")), 0.0)
    effects = here.on_status(standing("b", "left"), 0.0)
    assert [effect.claim.key for effect in effects if isinstance(effect, PublishClaim)] == [
        falling_to("a", "a", "c")
    ]
    assert len(effects) == 1


def test_what_another_target_has_just_done_is_not_kept_for_it() -> None:
    here, key = book("b"), falling_to("b", "a", "b")
    here.on_claim(claim("b", key), 0.0)
    here.on_claim_cleared(key, 0.0)
    here.on_request(claim("a", key), UNCLAIMED_S / 2)
    assert not here.is_open(key)
    here.on_request(claim("a", key), UNCLAIMED_S)
    assert here.is_open(key)


def test_who_drains_takes_what_nobody_claims_when_nobody_else_is_ready() -> None:
    here, key = book("b"), falling_to("b", "a", "b")
    here.set_status("draining", 0.0)
    here.on_request(claim("a", key), 0.0)
    assert here.on_tick(UNCLAIMED_S) == []
    assert here.is_open(key)
    assert here.on_status(standing("b", "unavailable"), UNCLAIMED_S) == [
        PublishClaim(claim("a", key))
    ]


@pytest.mark.parametrize("state", ["left", "lost"])
def test_who_is_gone_is_not_waited_for(state: str) -> None:
    here = book("b", "c")
    here.own.claim(claim("a"), 0.0)
    assert here.on_ack("c", "u/1", 0) == []
    gone = msgspec.structs.replace(standing("b"), state=state)
    assert here.on_status(gone, 0.0) == [StartRequest(claim("a"))]


def test_who_was_silent_once_is_not_waited_for_the_next_time() -> None:
    here = book("b")
    here.own.claim(claim("a", "u/1"), 0.0)
    assert here.on_tick(ACK_TIMEOUT_S) == [StartRequest(claim("a", "u/1"))]
    assert here.own.claim(claim("a", "u/2"), 1.0) == [
        PublishClaim(claim("a", "u/2")),
        StartRequest(claim("a", "u/2")),
    ]


def test_request_without_an_id_is_forgotten_when_another_target_knows_its_body() -> None:
    here = book("b")
    unnamed = dataclasses.replace(ticket(falling_to("b", "a", "b")), is_named=False)
    digest = next(
        bytes([number]) for number in range(99) if chosen(bytes([number]).hex(), "ab") == "b"
    )
    unnamed = dataclasses.replace(unnamed, digest=digest)
    here.on_request(msgspec.structs.replace(claim("a", unnamed.key), ticket=unnamed), 0.0)
    assert here.is_open(unnamed.key)
    here.on_known("anon/theirs", "b", digest, 0.0)
    assert not here.is_open(unnamed.key)


def test_claim_that_the_broker_no_longer_holds_is_not_taken() -> None:
    here = book("b")
    here.on_claim(claim("b"), 0.0)
    here.on_connected(0.0)
    here.on_status(standing("b", "left"), 0.0)
    assert here.join(0.0, is_remembered=True) == []
