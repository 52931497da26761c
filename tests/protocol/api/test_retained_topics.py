"""What is retained about a cluster and its nodes can be read again, by anybody."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.client.cluster_view import ClusterView
from edgecosine.protocol.api.retained_topics import (
    OFFLINE,
    NodeStatus,
    info_notice,
    node_state_notice,
    node_status_notice,
    read_node_status,
    status_notice,
    view_nodes,
)
from edgecosine.protocol.api.topics import InfoTopic, Topics

HOME = Topics("home")


def test_all_notices_are_retained() -> None:
    notices = (
        status_notice(HOME, OFFLINE),
        info_notice(HOME, version="1", info={"models": ["tiny"]}, limits={"max_sessions": 4}),
        node_status_notice(HOME, "n1", "ready", session="s", now_s=5.0),
        node_state_notice(HOME, "n1", {"role": "target"}),
        node_state_notice(HOME, "n1", None),
    )
    assert all(notice.retain for notice in notices)
    assert json.loads(notices[1].payload)["topics"]["chat"] == "edgecosine/home/request/chat"
    assert read_node_status(notices[2].payload) == NodeStatus("ready", "s", 5.0)
    assert notices[4].payload == b""


def test_nodes_are_listed_in_order_without_cleared_ones() -> None:
    lost = node_status_notice(HOME, "b", "lost", session="s", now_s=5.0).payload
    views = view_nodes(
        {
            "c": {"status": b"", "state": b""},
            "b": {"status": lost},
            "a": {"state": b'{"role": "target"}'},
        }
    )
    assert list(views) == ["a", "b"]
    assert views["a"].is_here
    assert views["a"].state == {"role": "target"}
    assert not views["b"].is_here


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"state":"ready","x":' + b"[" * 100_000,
        b'{"x":' + b"[" * 40 + b"]" * 40 + b"}",
    ],
    ids=["array", "field", "whole"],
)
def test_too_deeply_nested_json_is_ignored(payload: bytes) -> None:
    [view] = view_nodes({"a": {"status": payload, "state": payload}}).values()
    assert view.status is None
    assert view.state == {}
    watch = ClusterView()
    watch.take(InfoTopic(), payload)
    assert not watch.info()


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_arbitrary_bytes_are_ignored(status: bytes, state: bytes) -> None:
    for view in view_nodes({"a": {"status": status, "state": state}}).values():
        assert view.status is None
        assert isinstance(view.state, dict)
