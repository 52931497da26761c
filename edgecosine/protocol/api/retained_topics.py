"""Retained publications: whether a cluster and its nodes are there, and what they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from edgecosine.protocol.api.mqtt_message import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.api.request import NodeState
from edgecosine.protocol.api.topics import Topics

CONTRACT_VERSION = 1
"""Of the topics and bodies; counts up when a reader must change."""
ONLINE = b"online"
OFFLINE = b"offline"
DRAINING = b"draining"
"""Online for those who have asked, and closed for others."""

RENEW_S: Final = 3.0
"""How often a node says again whether it is there."""
LEASE_S: Final = 10.0
"""After so long in silence it is lost, whatever it has said."""
KEEP_S: Final = 3600
"""After so long a broker forgets a node that says nothing any more."""
RENEW_ONLINE_S: Final = 20.0
KEEP_ONLINE_S: Final = 60
"""The same of the cluster's status: after so long in silence nobody is there."""

_MAX_LEVELS: Final = 16
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading a stranger's JSON may raise; RecursionError where it is nested too deeply."""

NodePresence = Literal["starting", "ready", "unavailable", "draining", "offline", "lost"]
"""`offline` was said by the node, `lost` by the broker in its name. `unavailable` is a target whose
engine does not answer."""


class NodeStatus(msgspec.Struct, frozen=True):
    """Whether a node is there. `session` names one life of the node, `ts` is seconds since 1970."""

    state: NodePresence
    session: str
    ts: float
    reason: str = ""
    """Why it is not ready."""


def status_notice(topics: Topics, payload: bytes) -> Outgoing:
    """The cluster's `online`, `draining` or `offline`."""
    return Outgoing(
        topics.status,
        payload,
        retain=True,
        content_type=TEXT_TYPE,
        expiry_s=None if payload == OFFLINE else KEEP_ONLINE_S,
    )


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
            "client": topics.client_status("<client>"),
        },
    }
    return Outgoing(topics.info, msgspec.json.encode(body), retain=True, content_type=JSON_TYPE)


def node_status_notice(
    topics: Topics,
    node_id: str,
    state: NodePresence,
    *,
    session: str,
    now_s: float,
    reason: str = "",
) -> Outgoing:
    """Whether a node is there, for all who come later too."""
    return Outgoing(
        topics.node_status(node_id),
        msgspec.json.encode(NodeStatus(state, session, now_s, reason)),
        retain=True,
        content_type=JSON_TYPE,
        expiry_s=KEEP_S,
    )


def read_node_status(payload: bytes) -> NodeStatus | None:
    """What a node said of itself; None when it is unreadable."""
    try:
        return msgspec.json.decode(payload, type=NodeStatus)
    except _UNREADABLE:
        return None


def node_state_notice(topics: Topics, node_id: str, state: NodeState | None) -> Outgoing:
    """What a node is and how it does; None clears what the broker holds."""
    return Outgoing(
        topics.node_state(node_id),
        b"" if state is None else msgspec.json.encode(state),
        retain=True,
        content_type=JSON_TYPE,
        expiry_s=KEEP_S,
    )


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a broker holds about one node."""

    node_id: str
    status: NodeStatus | None
    state: NodeState

    @property
    def is_here(self) -> bool:
        """Whether the node, or its broker in its name, has not said that it is gone."""
        return self.status is None or self.status.state not in ("offline", "lost")


def view_nodes(
    messages: Mapping[str, Mapping[str, bytes]], targets: Collection[str] = ()
) -> dict[str, NodeView]:
    """Read each node's `status` and `state` payloads; what is unreadable counts as not said.

    Where `targets` are known, from what targets alone may write, no other node is believed to be
    one.
    """
    return {
        node_id: NodeView(
            node_id,
            read_node_status(payloads.get("status", b"")),
            _believed(read_facts(payloads.get("state", b"")), not targets or node_id in targets),
        )
        for node_id, payloads in sorted(messages.items())
        if any(payloads.values())
    }


def read_facts(payload: bytes) -> Mapping[str, Any]:
    """The JSON object that a node or a gateway tells of itself; empty when it is unreadable."""
    try:
        facts = msgspec.json.decode(payload)
    except _UNREADABLE:
        return {}
    return facts if isinstance(facts, dict) and _is_shallow(facts) else {}


def _believed(state: NodeState, may_be_target: bool) -> NodeState:
    if may_be_target or state.get("role") != "target":
        return state
    return {**state, "role": "no target"}


def _is_shallow(value: object, levels: int = _MAX_LEVELS) -> bool:
    """Whether the value can be shown, written and compared without running out of stack."""
    if not isinstance(value, (dict, list)):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)
