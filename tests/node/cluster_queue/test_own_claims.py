"""When an own claim starts and is acknowledged, and what follows a restart."""

from __future__ import annotations

import msgspec
import pytest

from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    StartRequest,
)
from edgecosine.node.cluster_queue.members import Members
from edgecosine.node.cluster_queue.own_claims import (
    ACK_TIMEOUT_S,
    MAX_DONE,
    MAX_END_BYTES,
    OwnClaims,
)
from edgecosine.protocol.api.replies import FinalReply, RequestEnd
from tests.node.cluster_queue.claims import KEY, claim, joined, status, ticket

OURS = claim("a")
END = RequestEnd("done", FinalReply("1", "r", b"{}"))


def nothing(key: str) -> bool:
    return False


def ours_beside(*others: str) -> OwnClaims:
    return OwnClaims(joined(*others), nothing)


def test_lone_target_starts_at_once_and_publishes_nothing() -> None:
    ours = ours_beside()
    assert ours.claim(OURS, 0.0) == [StartRequest(OURS)]
    assert ours.is_acknowledged(KEY)
    assert ours.finish(KEY) == []
    assert ours.is_finished(KEY)


def test_request_starts_when_all_acknowledge_this_claim() -> None:
    ours = ours_beside("b", "c")
    assert ours.claim(OURS, 0.0) == [PublishClaim(OURS)]
    assert ours.on_ack("b", KEY, 0) == []
    assert ours.on_ack("c", KEY, 1) == []
    assert ours.is_pending(KEY)
    assert not ours.is_acknowledged(KEY)
    assert ours.on_ack("c", KEY, 0) == [StartRequest(OURS)]
    assert ours.is_acknowledged(KEY)
    assert ours.finish(KEY) == [ClearClaim(KEY)]


def test_final_is_ours_to_send_once_the_broker_retains_it_with_our_claim() -> None:
    ours = ours_beside("b")
    ours.claim(OURS, 0.0)
    ours.on_ack("b", KEY, 0)
    [published] = ours.add_end(KEY, END)
    assert published == PublishClaim(msgspec.structs.replace(OURS, end=END))
    assert ours.add_end(KEY, END) == []
    ours.on_own_claim(OURS, 0.0)
    assert not ours.is_acknowledged(KEY)
    ours.on_own_claim(published.claim, 0.0)
    assert ours.is_acknowledged(KEY)


def test_end_is_published_beside_a_target_that_was_lost_after_our_claim() -> None:
    members = joined()
    ours = OwnClaims(members, nothing)
    ours.claim(OURS, 0.0)
    members.update(status("b", "lost"), 0.0)
    [published] = ours.add_end(KEY, END)
    assert isinstance(published, PublishClaim)
    assert not ours.is_acknowledged(KEY)
    ours.on_own_claim(published.claim, 0.0)
    assert ours.is_acknowledged(KEY)


def test_end_that_is_too_long_for_a_claim_is_left_out() -> None:
    ours = ours_beside("b")
    ours.claim(OURS, 0.0)
    ours.on_ack("b", KEY, 0)
    long = FinalReply("1", "r", bytes(MAX_END_BYTES))
    assert ours.add_end(KEY, RequestEnd("done", long)) == []
    assert ours.is_acknowledged(KEY)
    ours.add_end(KEY, END)
    ours.refuse(KEY)
    assert ours.is_acknowledged(KEY)
    assert ours.add_end(KEY, END) == []
    assert ours.republish(KEY) == [PublishClaim(OURS)]


def test_missing_ack_becomes_overdue_and_can_be_skipped() -> None:
    ours = ours_beside("b", "c")
    ours.claim(OURS, 0.0)
    ours.on_ack("b", KEY, 0)
    assert ours.overdue(ACK_TIMEOUT_S / 2) == set()
    assert ours.overdue(ACK_TIMEOUT_S) == {"c"}
    assert ours.proceed_without(["c"]) == [StartRequest(OURS)]


def test_reconnection_needs_new_acks_and_starts_nothing_twice() -> None:
    members = joined("b")
    ours = OwnClaims(members, nothing)
    ours.claim(OURS, 0.0)
    ours.on_ack("b", KEY, 0)
    members.disconnect(1.0)
    assert not ours.is_acknowledged(KEY)
    members.update(status("b"), 1.0)
    members.join(1.0)
    assert ours.reclaim_all(1.0) == [PublishClaim(OURS)]
    assert not ours.is_acknowledged(KEY)
    assert ours.on_ack("b", KEY, 0) == []
    assert ours.is_acknowledged(KEY)


def test_nothing_starts_before_the_connection_is_joined() -> None:
    members = Members(status("a"))
    ours = OwnClaims(members, nothing)
    assert ours.claim(OURS, 0.0) == []
    assert not ours.is_acknowledged(KEY)
    members.join(1.0)
    assert ours.reclaim_all(1.0) == [StartRequest(OURS)]


def test_cleared_claim_is_republished_if_it_was_published() -> None:
    alone, beside = ours_beside(), ours_beside("b")
    alone.claim(OURS, 0.0)
    beside.claim(OURS, 0.0)
    assert alone.on_cleared(KEY) == []
    assert beside.on_cleared(KEY) == [PublishClaim(OURS)]
    assert beside.on_cleared("u/2") == []


def test_late_claim_of_a_finished_request_is_cleared() -> None:
    ours = ours_beside("b")
    ours.claim(OURS, 0.0)
    ours.finish(KEY)
    assert ours.on_own_claim(OURS, 0.0) == [ClearClaim(KEY)]
    ours.reopen(KEY)
    assert ours.on_own_claim(OURS, 0.0) == []


def test_claim_of_a_former_process_is_taken_cleared_or_surpassed() -> None:
    ours = OwnClaims(joined("b"), {"u/2"}.__contains__)
    former = claim("a", life=9, generation=2)
    assert ours.on_own_claim(former, 0.0) == [PublishClaim(claim("a", generation=2))]
    assert ours.on_own_claim(claim("a", "u/2", life=9), 0.0) == [ClearClaim("u/2")]
    ours.claim(claim("a", "u/3"), 0.0)
    later = claim("a", "u/3", generation=1)
    assert ours.on_own_claim(claim("a", "u/3", life=9, generation=1), 0.0) == [PublishClaim(later)]


def test_repeated_request_keeps_its_claim_with_a_new_reply_address() -> None:
    ours = ours_beside("b")
    ours.claim(OURS, 0.0)
    again = ticket(reply_topic="elsewhere")
    ours.renew(again)
    assert ours.get(KEY) == msgspec.structs.replace(OURS, ticket=again)


def test_undelivered_final_is_ours_if_another_target_claims_it() -> None:
    ours = ours_beside("b")
    ours.expect_delivery(KEY)
    assert not ours.is_acknowledged(KEY)
    assert ours.on_own_claim(claim("a", life=9), 0.0) == []
    assert ours.on_rival_of_undelivered(ticket()) == [PublishKnown(ticket())]
    assert ours.is_acknowledged(KEY)
    assert ours.settle_undelivered([], is_remembered=True) == []
    assert ours.finish(KEY) == [ClearClaim(KEY)]
    assert not ours.is_undelivered(KEY)


@pytest.mark.parametrize(
    ("others", "claimed", "is_remembered", "is_given"),
    [
        ("b", [], True, False),
        ("b", [KEY], True, True),
        ("b", [], False, True),
        ("", [], True, True),
    ],
)
def test_undelivered_final_is_sent_unless_another_target_sent_one(
    others: str, claimed: list[str], is_remembered: bool, is_given: bool
) -> None:
    ours = ours_beside(*others)
    ours.expect_delivery(KEY)
    actions = ours.settle_undelivered(claimed, is_remembered=is_remembered)
    assert actions == ([] if is_given else [AbandonRequest(KEY)])
    assert ours.is_undelivered(KEY) is is_given
    assert not is_given or ours.is_acknowledged(KEY)


def test_oldest_finished_request_is_forgotten() -> None:
    ours = ours_beside()
    for number in range(MAX_DONE + 1):
        ours.claim(claim("a", f"u/{number}"), 0.0)
        ours.finish(f"u/{number}")
    assert [ours.is_finished(f"u/{number}") for number in (0, 1, MAX_DONE)] == [False, True, True]
