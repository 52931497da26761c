"""The view of a node is valid as long as its status is renewed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edgecosine.client import cluster_view as module
from edgecosine.client.cluster_view import ClusterView
from edgecosine.client.health import concerns
from edgecosine.protocol.api.retained_topics import (
    KEEP_S,
    LEASE_S,
    NodePresence,
    NodeView,
    node_status_notice,
)
from edgecosine.protocol.api.topics import InfoTopic, NodeStateTopic, NodeStatusTopic, Topics

HOME = Topics("home")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which is the test's."""
    now = [1000.0]
    monkeypatch.setattr(module, "_now", lambda: now[0])
    return now


def status(presence: NodePresence, reason: str = "") -> bytes:
    notice = node_status_notice(HOME, "d1", presence, session="s", now_s=0.0, reason=reason)
    return notice.payload


def presence(watch: ClusterView) -> str | None:
    view: NodeView | None = watch.nodes().get("d1")
    return None if view is None or view.status is None else view.status.state


def test_silent_node_is_lost_and_finally_forgotten(clock: list[float]) -> None:
    watch = ClusterView()
    watch.take(NodeStatusTopic("d1"), status("ready"))
    watch.take(NodeStateTopic("d1"), b"{}")
    clock[0] += LEASE_S / 2
    watch.take(NodeStatusTopic("d1"), status("ready"))
    clock[0] += LEASE_S
    assert presence(watch) == "ready"
    clock[0] += 0.1
    assert presence(watch) == "lost"
    assert not watch.nodes()["d1"].is_here
    found = concerns(is_online=True, is_draining=False, nodes=watch.nodes())
    assert found == ["d1 is lost: it stopped renewing its status"]
    watch.take(NodeStatusTopic("d1"), status("ready"))
    assert presence(watch) == "ready"
    clock[0] += KEEP_S + 1
    assert watch.nodes() == {}


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(0.0, "ready"), (LEASE_S - 1, "ready"), (LEASE_S + 1, "lost"), (KEEP_S + 1, None)],
)
def test_age_of_a_retained_message_follows_its_expiry(
    clock: list[float], age_s: float, state: str | None
) -> None:
    watch = ClusterView()
    watch.take(NodeStatusTopic("d1"), status("ready"), age_s)
    assert presence(watch) == state


@pytest.mark.parametrize("state", ["lost", "offline"])
def test_gone_node_keeps_its_status_until_it_is_forgotten(
    clock: list[float], state: NodePresence
) -> None:
    watch = ClusterView()
    watch.take(NodeStatusTopic("d1"), status(state))
    clock[0] += KEEP_S - 1
    assert presence(watch) == state
    clock[0] += 2
    assert presence(watch) is None


def test_only_listed_targets_count_as_targets(clock: list[float]) -> None:
    watch = ClusterView()
    lie = msgspec.json.encode({"role": "target", "is_full": True, "model": "m"})
    for node in ("t1", "d1"):
        watch.take(NodeStatusTopic(node), status("unavailable", "no pass"))
        watch.take(NodeStateTopic(node), lie)
    assert [view.state["role"] for view in watch.nodes().values()] == ["target", "target"]
    watch.take(InfoTopic(), msgspec.json.encode({"targets": ["t1"]}))
    roles = {name: view.state["role"] for name, view in watch.nodes().items()}
    assert roles == {"d1": "no target", "t1": "target"}
    assert watch.unavailable == {"t1": "no pass"}
    found = concerns(is_online=True, is_draining=False, nodes=watch.nodes())
    assert not any("d1: " in each for each in found if "unavailable" not in each)


def test_silence_is_a_change_and_a_renewal_is_none(clock: list[float]) -> None:
    async def scenario() -> None:
        watch = ClusterView()
        watch.take(NodeStatusTopic("d1"), status("ready"))
        await watch.changed()
        async with asyncio.TaskGroup() as group:
            change = group.create_task(watch.changed())
            await asyncio.sleep(0)
            watch.take(NodeStatusTopic("d1"), status("ready"))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not change.done()
            clock[0] += LEASE_S + 1
        assert change.done()

    asyncio.run(scenario())
