"""A lease lasts while it is renewed; a retained status alone is no lease."""

from __future__ import annotations

from edgecosine.node.cluster_queue.leases import CALL_S, LEASE_S, MAX_KEPT, STALE_S, Leases
from tests.node.cluster_queue.claims import status


def states(leases: Leases, now: float) -> list[tuple[str, str]]:
    return [(each.node, each.state) for each in leases.expire(now)]


def test_silent_target_becomes_unavailable_and_then_lost_once_each() -> None:
    leases = Leases()
    leases.renew(status("b"), 0.0)
    leases.renew(status("c"), 0.0)
    assert states(leases, STALE_S / 2) == []
    leases.renew(status("c"), STALE_S / 2)
    assert states(leases, STALE_S) == [("b", "unavailable")]
    assert not leases.is_fresh("b")
    assert leases.is_fresh("c")
    assert states(leases, STALE_S) == []
    leases.renew(status("c", "draining"), LEASE_S)
    assert states(leases, LEASE_S) == [("b", "lost")]
    assert states(leases, LEASE_S + STALE_S) == [("c", "unavailable")]


def test_renewed_lease_is_fresh() -> None:
    leases = Leases()
    leases.renew(status("b"), 0.0)
    assert states(leases, STALE_S)
    leases.renew(status("b"), LEASE_S)
    assert states(leases, LEASE_S) == []
    assert leases.is_fresh("b")


def test_retained_status_counts_once_it_is_renewed() -> None:
    leases = Leases()
    assert leases.all_confirmed
    leases.add_retained(status("b"))
    leases.add_retained(status("c"))
    assert leases.is_unconfirmed("b")
    assert not leases.is_fresh("b")
    leases.renew(status("b"), 0.0)
    assert not leases.all_confirmed
    assert [(each.node, each.state) for each in leases.give_up()] == [("c", "lost")]
    assert leases.all_confirmed
    assert leases.is_fresh("b")


def test_status_request_shortens_a_lease() -> None:
    leases = Leases()
    for node in "bc":
        leases.renew(status(node), 0.0)
    leases.expect_renewal(0.0)
    leases.renew(status("c"), CALL_S / 2)
    assert states(leases, CALL_S) == [("b", "unavailable")]


def test_ended_leases_and_former_connections_are_forgotten() -> None:
    leases = Leases()
    leases.renew(status("b"), 0.0)
    leases.add_retained(status("c"))
    leases.end("b")
    leases.end("c")
    assert leases.all_confirmed
    assert states(leases, LEASE_S) == []
    leases.renew(status("b"), 0.0)
    leases.reset()
    assert states(leases, LEASE_S) == []


def test_number_of_leases_is_bounded() -> None:
    leases = Leases()
    for number in range(MAX_KEPT):
        assert leases.renew(status(str(number)), 0.0)
        leases.add_retained(status(str(number)))
    assert not leases.renew(status("b"), 0.0)
    assert leases.renew(status("1"), 0.0)
