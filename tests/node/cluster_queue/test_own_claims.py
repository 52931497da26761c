"""When a request of ours starts, when it is surely ours, and what becomes of our former words."""

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
from edgecosine.node.cluster_queue.own_claims import CONSENT_S, MAX_DONE, OwnClaims
from tests.node.cluster_queue.claims import KEY, claim, joined, standing, ticket

OURS = claim("a")


def nothing(key: str) -> bool:
    return False


def ours_beside(*others: str) -> OwnClaims:
    return OwnClaims(joined(*others), nothing)


def test_alone_a_request_starts_at_once_and_nobody_is_told() -> None:
    ours = ours_beside()
    assert ours.take(OURS, 0.0) == [StartRequest(OURS)]
    assert ours.is_sure(KEY)
    assert ours.finish(KEY) == []
    assert ours.is_answered(KEY)


def test_request_starts_when_all_consent_to_this_very_claim() -> None:
    ours = ours_beside("b", "c")
    assert ours.take(OURS, 0.0) == [PublishClaim(OURS)]
    assert ours.consented("b", KEY, 0) == []
    assert ours.consented("c", KEY, 1) == []
    assert ours.is_pending(KEY)
    assert not ours.is_sure(KEY)
    assert ours.consented("c", KEY, 0) == [StartRequest(OURS)]
    assert ours.is_sure(KEY)
    assert ours.finish(KEY) == [ClearClaim(KEY)]


def test_consent_is_waited_for_so_long_and_can_be_done_without() -> None:
    ours = ours_beside("b", "c")
    ours.take(OURS, 0.0)
    ours.consented("b", KEY, 0)
    assert ours.overdue(CONSENT_S / 2) == set()
    assert ours.overdue(CONSENT_S) == {"c"}
    assert ours.go_without(["c"]) == [StartRequest(OURS)]


def test_with_a_new_connection_all_are_asked_again_and_nothing_starts_twice() -> None:
    standings = joined("b")
    ours = OwnClaims(standings, nothing)
    ours.take(OURS, 0.0)
    ours.consented("b", KEY, 0)
    standings.lose(1.0)
    assert not ours.is_sure(KEY)
    standings.hear(standing("b"), 1.0)
    standings.join(1.0)
    assert ours.ask_again(1.0) == [PublishClaim(OURS)]
    assert not ours.is_sure(KEY)
    assert ours.consented("b", KEY, 0) == []
    assert ours.is_sure(KEY)


def test_nothing_starts_before_the_broker_was_heard() -> None:
    standings = Members(standing("a"))
    ours = OwnClaims(standings, nothing)
    assert ours.take(OURS, 0.0) == []
    assert not ours.is_sure(KEY)
    standings.join(1.0)
    assert ours.ask_again(1.0) == [StartRequest(OURS)]


def test_claim_that_was_cleared_is_told_again_if_it_was_ever_told() -> None:
    alone, beside = ours_beside(), ours_beside("b")
    alone.take(OURS, 0.0)
    beside.take(OURS, 0.0)
    assert alone.tell_again(KEY) == []
    assert beside.tell_again(KEY) == [PublishClaim(OURS)]
    assert beside.tell_again("u/2") == []


def test_our_word_that_comes_back_late_is_cleared() -> None:
    ours = ours_beside("b")
    ours.take(OURS, 0.0)
    ours.finish(KEY)
    assert ours.hear_own(OURS, 0.0) == [ClearClaim(KEY)]
    ours.reopen(KEY)
    assert ours.hear_own(OURS, 0.0) == []


def test_claim_of_our_former_life_is_taken_cleared_or_surpassed() -> None:
    ours = OwnClaims(joined("b"), {"u/2"}.__contains__)
    former = claim("a", life=9, generation=2)
    assert ours.hear_own(former, 0.0) == [PublishClaim(claim("a", generation=2))]
    assert ours.hear_own(claim("a", "u/2", life=9), 0.0) == [ClearClaim("u/2")]
    ours.take(claim("a", "u/3"), 0.0)
    later = claim("a", "u/3", generation=1)
    assert ours.hear_own(claim("a", "u/3", life=9, generation=1), 0.0) == [PublishClaim(later)]


def test_request_that_came_again_keeps_its_claim_under_its_new_ticket() -> None:
    ours = ours_beside("b")
    ours.take(OURS, 0.0)
    again = ticket(reply_topic="elsewhere")
    ours.renew(again)
    assert ours.get(KEY) == msgspec.structs.replace(OURS, ticket=again)


def test_answer_of_our_former_life_is_ours_where_another_target_lacks_it() -> None:
    ours = ours_beside("b")
    ours.owe(KEY)
    assert not ours.is_sure(KEY)
    assert ours.hear_own(claim("a", life=9), 0.0) == []
    assert ours.insist(ticket()) == [PublishKnown(ticket())]
    assert ours.is_sure(KEY)
    assert ours.settle_owed([], is_remembered=True) == []
    assert ours.finish(KEY) == [ClearClaim(KEY)]
    assert not ours.owes(KEY)


@pytest.mark.parametrize(
    ("others", "claimed", "is_remembered", "is_given"),
    [
        ("b", [], True, False),
        ("b", [KEY], True, True),
        ("b", [], False, True),
        ("", [], True, True),
    ],
)
def test_answer_of_our_former_life_is_given_unless_another_target_must_have_given_it(
    others: str, claimed: list[str], is_remembered: bool, is_given: bool
) -> None:
    ours = ours_beside(*others)
    ours.owe(KEY)
    effects = ours.settle_owed(claimed, is_remembered=is_remembered)
    assert effects == ([] if is_given else [AbandonRequest(KEY)])
    assert ours.owes(KEY) is is_given
    assert not is_given or ours.is_sure(KEY)


def test_the_oldest_of_what_was_done_is_forgotten() -> None:
    ours = ours_beside()
    for number in range(MAX_DONE + 1):
        ours.take(claim("a", f"u/{number}"), 0.0)
        ours.finish(f"u/{number}")
    assert [ours.is_answered(f"u/{number}") for number in (0, 1, MAX_DONE)] == [False, True, True]
