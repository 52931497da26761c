"""Healthy and degraded clusters, with the reasons."""

from __future__ import annotations

from typing import Any

import pytest

from edgecosine.client.health import committees, concerns, counted
from edgecosine.counters import Counters
from edgecosine.discovery.events import Explanation, PeerState
from edgecosine.node.roles.state_report import _is_missing
from edgecosine.protocol.api.retained_topics import NodePresence, NodeStatus, NodeView

WELL: dict[str, Any] = {"role": "target", "drafters": {"d": {}}, "not_linked": []}


def node(name: str, presence: NodePresence, reason: str = "", **state: Any) -> NodeView:
    return NodeView(name, NodeStatus(presence, "s", 1.0, reason), state)


def found(*nodes: NodeView, is_online: bool = True, is_draining: bool = False) -> str:
    views = {view.node_id: view for view in nodes}
    return "; ".join(concerns(is_online=is_online, is_draining=is_draining, nodes=views))


def test_cluster_is_healthy_with_and_without_a_drafter_that_left() -> None:
    drafter = node("d", "ready", role="drafter")
    assert found(node("t", "ready", **WELL), drafter) == ""
    assert found(node("t", "ready", **WELL), drafter, node("e", "offline")) == ""


@pytest.mark.parametrize(
    ("views", "why"),
    [
        ([node("t", "unavailable", "no pass has ended", **WELL)], "t is unavailable: no pass"),
        ([node("t", "ready", **WELL), node("d", "lost")], "d is lost"),
        ([node("t", "ready", **WELL), node("d", "draining")], "d is draining"),
        ([node("t", "ready", **(WELL | {"drafters": {}}))], "no drafter is linked"),
        ([node("t", "ready", **(WELL | {"is_full": True, "queued": 64}))], "full, 64 wait"),
        ([node("t", "ready", **(WELL | {"is_congested": True}))], "are dropped"),
        ([node("t", "ready", **(WELL | {"away": ["legal"]}))], "no node of the committee's member"),
        ([node("t", "ready", **(WELL | {"not_linked": ["d: protocol 2"]}))], "d: protocol 2"),
    ],
)
def test_problems_are_named(views: list[NodeView], why: str) -> None:
    assert why in found(*views)


def peer(standing: PeerState, *, is_foreign: bool = False) -> Explanation:
    return Explanation("d", standing, "why", is_foreign=is_foreign)


def test_only_compatible_unlinked_peers_count_as_missing() -> None:
    assert _is_missing(peer("refused"))
    assert _is_missing(peer("waiting"))
    assert not _is_missing(peer("linked"))
    assert not _is_missing(peer("left out"))
    assert not _is_missing(peer("refused", is_foreign=True))


def test_refused_links_are_named() -> None:
    assert "no gateway" in found(is_online=False)
    assert "no new requests" in found(is_draining=True)


def test_committees_are_listed_whatever_a_target_reports() -> None:
    legal = {
        "weight": 0.5, "model": "law", "nodes": ["m1", "m2"], "slowest": 3, "round_ms": 2.5,
    }  # fmt: skip
    state = {"members": {"legal": legal, "b": 1}, "bytes_per_position": 136, "proved_at_once": 0.9}
    views = {"t": node("t", "ready", **state), "u": node("u", "ready", members=7)}
    assert committees(views) == [
        "t: committee of legal (weight 0.5, model law, m1+m2, 2.5 ms, slowest in 3 rounds), b; "
        "136 bytes per position, 0.9 of draws proved at once"
    ]


def test_counts_are_listed_by_kind_without_zeros() -> None:
    counters = Counters()
    assert counters.view() == {}
    counters.count("refused", "overloaded")
    counters.count("refused", "overloaded")
    counters.count("refused", "draining")
    counters.count("lost_links", by=3)
    counters.count("reconnected", by=0)
    assert counters.view() == {"refused": {"draining": 1, "overloaded": 2}, "lost_links": 3}
    views = {"t": node("t", "ready", counters=counters.view()), "d": node("d", "ready")}
    assert counted(views) == ["t: lost links 3, refused (draining 1, overloaded 2)"]
