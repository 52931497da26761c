"""Who is there, who may take a request, and when somebody's claims are given up for lost."""

from __future__ import annotations

import pytest

from edgecosine.node.cluster_queue.members import FORGET_S, GRACE_S, Members
from edgecosine.protocol.api.claim_messages import StandingState
from tests.node.cluster_queue.claims import claim, joined, standing

SOON_S = GRACE_S / 2


def test_new_requests_are_for_who_is_ready_and_else_for_who_is_there() -> None:
    standings = joined("b", "c")
    standings.update(standing("b", "draining"), 0.0)
    assert sorted(standings.eligible()) == ["a", "c"]
    standings.set_status("unavailable")
    standings.update(standing("c", "unavailable"), 0.0)
    assert sorted(standings.eligible()) == ["a", "b", "c"]
    assert not standings.has_ready_peer
    standings.update(standing("b", "lost"), 0.0)
    assert sorted(standings.eligible()) == ["a", "c"]


def test_who_is_there_keeps_its_claims() -> None:
    assert not joined("b").is_gone(claim("b"), 10 * GRACE_S)


def test_who_left_is_waited_for_no_more() -> None:
    standings = joined("b")
    standings.update(standing("b", "left"), 0.0)
    assert standings.is_gone(claim("b"), 0.0)
    assert standings.is_alone


def test_grace_begins_when_a_target_is_lost_however_often_that_is_said() -> None:
    standings = joined("b")
    standings.update(standing("b", "lost"), 0.0)
    standings.update(standing("b", "lost"), SOON_S)
    assert not standings.is_gone(claim("b"), SOON_S)
    assert standings.is_gone(claim("b"), GRACE_S)


def test_grace_begins_anew_with_our_connection() -> None:
    standings = joined("b")
    standings.disconnect(0.0)
    assert standings.others == []
    standings.join(SOON_S)
    assert not standings.is_gone(claim("b"), GRACE_S)
    assert standings.is_gone(claim("b"), SOON_S + GRACE_S)


@pytest.mark.parametrize("again_s", [SOON_S, 2 * GRACE_S])
def test_who_lives_anew_has_the_grace_to_go_on_with_its_former_claims(again_s: float) -> None:
    standings = joined("b")
    standings.update(standing("b", life=1), again_s)
    standings.update(standing("b", "draining", life=1), again_s + SOON_S)
    assert not standings.is_gone(claim("b"), again_s + SOON_S)
    assert standings.is_gone(claim("b"), again_s + GRACE_S)
    assert not standings.is_gone(claim("b", life=1), again_s + GRACE_S)


def test_who_claims_before_it_says_how_it_stands_has_grace_until_it_does() -> None:
    standings = joined()
    standings.add_claimant("b", 0.0)
    standings.add_claimant("b", SOON_S)
    assert not standings.is_gone(claim("b"), SOON_S)
    assert standings.is_gone(claim("b"), GRACE_S)
    standings.update(standing("b"), SOON_S)
    assert not standings.is_gone(claim("b"), GRACE_S)
    standings.update(standing("b", "left"), SOON_S)
    assert standings.is_gone(claim("b"), SOON_S)


@pytest.mark.parametrize(
    ("former", "life", "has_come"),
    [("ready", 0, False), ("ready", 1, True), ("lost", 0, True), ("left", 0, True)],
)
def test_who_has_come_or_come_back_is_told_of(
    former: StandingState, life: int, has_come: bool
) -> None:
    standings = Members(standing("a"))
    assert standings.update(standing("b"), 0.0)
    standings.update(standing("b", former), 0.0)
    assert standings.update(standing("b", "draining", life), 0.0) is has_come


def test_who_is_silent_is_not_asked_until_it_consents() -> None:
    standings = joined("b", "c")
    standings.set_unresponsive(["b", "nobody"])
    assert standings.claim_voters() == {"c"}
    standings.set_responsive("b")
    assert standings.claim_voters() == {"b", "c"}


def test_who_was_lost_long_ago_is_forgotten() -> None:
    standings = joined("b", "c")
    standings.update(standing("b", "lost"), 0.0)
    standings.forget(FORGET_S / 2)
    standings.update(standing("c", "left"), FORGET_S / 2)
    assert not standings.is_alone
    standings.forget(FORGET_S)
    assert standings.is_alone
