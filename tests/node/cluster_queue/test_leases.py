"""A word of another target holds as long as it is said again, and what was held proves nothing."""

from __future__ import annotations

from edgecosine.node.cluster_queue.leases import CALL_S, LEASE_S, MAX_KEPT, STALE_S, Leases
from tests.node.cluster_queue.claims import standing


def states(leases: Leases, now: float) -> list[tuple[str, str]]:
    return [(each.node, each.state) for each in leases.expire(now)]


def test_who_falls_silent_is_unavailable_and_then_lost_and_each_is_told_once() -> None:
    leases = Leases()
    leases.renew(standing("b"), 0.0)
    leases.renew(standing("c"), 0.0)
    assert states(leases, STALE_S / 2) == []
    leases.renew(standing("c"), STALE_S / 2)
    assert states(leases, STALE_S) == [("b", "unavailable")]
    assert not leases.is_fresh("b")
    assert leases.is_fresh("c")
    assert states(leases, STALE_S) == []
    leases.renew(standing("c", "draining"), LEASE_S)
    assert states(leases, LEASE_S) == [("b", "lost")]
    assert states(leases, LEASE_S + STALE_S) == [("c", "unavailable")]


def test_who_speaks_again_is_fresh_again() -> None:
    leases = Leases()
    leases.renew(standing("b"), 0.0)
    assert states(leases, STALE_S)
    leases.renew(standing("b"), LEASE_S)
    assert states(leases, LEASE_S) == []
    assert leases.is_fresh("b")


def test_what_was_held_counts_once_it_is_said_again() -> None:
    leases = Leases()
    assert leases.all_confirmed
    leases.add_retained(standing("b"))
    leases.add_retained(standing("c"))
    assert leases.is_unconfirmed("b")
    assert not leases.is_fresh("b")
    leases.renew(standing("b"), 0.0)
    assert not leases.all_confirmed
    assert [(each.node, each.state) for each in leases.give_up()] == [("c", "lost")]
    assert leases.all_confirmed
    assert leases.is_fresh("b")


def test_who_is_called_has_less_time() -> None:
    leases = Leases()
    for node in "bc":
        leases.renew(standing(node), 0.0)
    leases.expect_renewal(0.0)
    leases.renew(standing("c"), CALL_S / 2)
    assert states(leases, CALL_S) == [("b", "unavailable")]


def test_who_is_gone_and_what_is_of_a_former_connection_is_forgotten() -> None:
    leases = Leases()
    leases.renew(standing("b"), 0.0)
    leases.add_retained(standing("c"))
    leases.end("b")
    leases.end("c")
    assert leases.all_confirmed
    assert states(leases, LEASE_S) == []
    leases.renew(standing("b"), 0.0)
    leases.reset()
    assert states(leases, LEASE_S) == []


def test_there_is_room_for_so_many() -> None:
    leases = Leases()
    for number in range(MAX_KEPT):
        assert leases.renew(standing(str(number)), 0.0)
        leases.add_retained(standing(str(number)))
    assert not leases.renew(standing("b"), 0.0)
    assert leases.renew(standing("1"), 0.0)
