"""Retained publications: whether a cluster and its nodes are there, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgecosine.protocol.publication import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.request import NodeState
from edgecosine.protocol.topics import Topics

CONTRACT_VERSION = 1
"""Of the topics and bodies; counts up when a reader must change."""
ONLINE = b"online"
OFFLINE = b"offline"

Presence = Literal["starting", "ready", "leaving", "offline", "lost"]
"""`offline` was said by the node, `lost` by the broker in its name."""


def status_notice(topics: Topics, payload: bytes) -> Outgoing:
    """The cluster's `online` or `offline`."""
    return Outgoing(topics.status, payload, retain=True, content_type=TEXT_TYPE)


def info_notice(
    topics: Topics, *, version: str, info: Mapping[str, Any], limits: Mapping[str, int]
) -> Outgoing:
    """What the cluster serves, within which limits, and on which topics."""
    body = {
        "version": version,
        "contract": CONTRACT_VERSION,
        "cluster": topics.cluster,
        **info,
        "limits": limits,
        "topics": {
            "chat": topics.request("chat"),
            "completion": topics.request("completion"),
            "ask": topics.request("ask"),
            "response": topics.response("<client>", "<id>"),
            "stream": topics.stream("<client>", "<id>"),
            "state": topics.job_state("<id>"),
            "cancel": topics.job_cancel("<id>"),
        },
    }
    return Outgoing(
        topics.info, msgspec.json.encode(body), retain=True, content_type=JSON_TYPE
    )


def node_status_notice(
    topics: Topics, node_id: str, state: Presence, *, session: str, now_s: float
) -> Outgoing:
    """Whether a node is there. `session` names one life of the node, `now_s` counts from 1970."""
    return Outgoing(
        topics.node_status(node_id),
        msgspec.json.encode({"state": state, "session": session, "ts": now_s}),
        retain=True,
        content_type=JSON_TYPE,
    )


def node_state_notice(topics: Topics, node_id: str, state: NodeState | None) -> Outgoing:
    """What a node is and how it does; None clears what the broker holds."""
    return Outgoing(
        topics.node_state(node_id),
        b"" if state is None else msgspec.json.encode(state),
        retain=True,
        content_type=JSON_TYPE,
    )
