"""Which targets are connected or eligible, and when their claims are abandoned."""

from __future__ import annotations

import pytest

from edgecosine.node.cluster_queue.members import FORGET_S, GRACE_S, Members
from edgecosine.protocol.api.claim_messages import MembershipState
from tests.node.cluster_queue.claims import claim, joined, status

SOON_S = GRACE_S / 2


def test_ready_targets_are_eligible_else_all_connected_ones() -> None:
    members = joined("b", "c")
    members.update(status("b", "draining"), 0.0)
    assert sorted(members.eligible()) == ["a", "c"]
    members.set_status("unavailable")
    members.update(status("c", "unavailable"), 0.0)
    assert sorted(members.eligible()) == ["a", "b", "c"]
    assert not members.has_ready_peer
    members.update(status("b", "lost"), 0.0)
    assert sorted(members.eligible()) == ["a", "c"]


def test_connected_target_keeps_its_claims() -> None:
    assert not joined("b").is_gone(claim("b"), 10 * GRACE_S)


def test_target_that_left_has_no_grace_period() -> None:
    members = joined("b")
    members.update(status("b", "left"), 0.0)
    assert members.is_gone(claim("b"), 0.0)
    assert members.is_alone


def test_grace_starts_with_the_first_loss() -> None:
    members = joined("b")
    members.update(status("b", "lost"), 0.0)
    members.update(status("b", "lost"), SOON_S)
    assert not members.is_gone(claim("b"), SOON_S)
    assert members.is_gone(claim("b"), GRACE_S)


def test_grace_restarts_with_our_connection() -> None:
    members = joined("b")
    members.disconnect(0.0)
    assert members.others == []
    members.join(SOON_S)
    assert not members.is_gone(claim("b"), GRACE_S)
    assert members.is_gone(claim("b"), SOON_S + GRACE_S)


@pytest.mark.parametrize("again_s", [SOON_S, 2 * GRACE_S])
def test_restarted_target_has_the_grace_to_continue_its_claims(again_s: float) -> None:
    members = joined("b")
    members.update(status("b", life=1), again_s)
    members.update(status("b", "draining", life=1), again_s + SOON_S)
    assert not members.is_gone(claim("b"), again_s + SOON_S)
    assert members.is_gone(claim("b"), again_s + GRACE_S)
    assert not members.is_gone(claim("b", life=1), again_s + GRACE_S)


def test_claimant_without_a_status_has_grace() -> None:
    members = joined()
    members.add_claimant("b", 0.0)
    members.add_claimant("b", SOON_S)
    assert not members.is_gone(claim("b"), SOON_S)
    assert members.is_gone(claim("b"), GRACE_S)
    members.update(status("b"), SOON_S)
    assert not members.is_gone(claim("b"), GRACE_S)
    members.update(status("b", "left"), SOON_S)
    assert members.is_gone(claim("b"), SOON_S)


@pytest.mark.parametrize(
    ("former", "life", "has_come"),
    [("ready", 0, False), ("ready", 1, True), ("lost", 0, True), ("left", 0, True)],
)
def test_new_and_returned_targets_are_reported(
    former: MembershipState, life: int, has_come: bool
) -> None:
    members = Members(status("a"))
    assert members.update(status("b"), 0.0)
    members.update(status("b", former), 0.0)
    assert members.update(status("b", "draining", life), 0.0) is has_come


def test_unresponsive_target_needs_no_ack_until_it_sends_one() -> None:
    members = joined("b", "c")
    members.set_unresponsive(["b", "nobody"])
    assert members.claim_voters() == {"c"}
    members.set_responsive("b")
    assert members.claim_voters() == {"b", "c"}


def test_target_lost_long_ago_is_forgotten() -> None:
    members = joined("b", "c")
    members.update(status("b", "lost"), 0.0)
    members.forget(FORGET_S / 2)
    members.update(status("c", "left"), FORGET_S / 2)
    assert not members.is_alone
    members.forget(FORGET_S)
    assert members.is_alone
