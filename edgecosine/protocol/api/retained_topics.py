"""Retained publications: status and info of a cluster, status and state of its nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from edgecosine.protocol.api.mqtt_message import JSON_TYPE, TEXT_TYPE, Outgoing
from edgecosine.protocol.api.result import NodeState
from edgecosine.protocol.api.topics import Topics

CONTRACT_VERSION = 1
"""Version of topics and bodies; grows when a reader must change."""
ONLINE = b"online"
OFFLINE = b"offline"
DRAINING = b"draining"
"""Running requests finish, new ones are refused."""

RENEW_S: Final = 3.0
"""Period in which a node renews its status."""
LEASE_S: Final = 10.0
"""Time without a renewal after which a node counts as lost."""
KEEP_S: Final = 3600
"""Expiry of a node's retained messages at the broker."""
RENEW_ONLINE_S: Final = 20.0
KEEP_ONLINE_S: Final = 60
"""Expiry of the cluster's status, which is renewed every `RENEW_ONLINE_S`."""

_MAX_LEVELS: Final = 16
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of reading untrusted JSON; RecursionError where it is nested too deeply."""

NodePresence = Literal["starting", "ready", "unavailable", "draining", "offline", "lost"]
"""`offline` is sent by the node, `lost` by its will. An `unavailable` target's engine stalls."""


class NodeStatus(msgspec.Struct, frozen=True):
    """A node's status. `session` identifies one process, `ts` is in seconds since 1970."""

    state: NodePresence
    session: str
    ts: float
    reason: str = ""
    """Why it is not ready."""


def status_notice(topics: Topics, payload: bytes) -> Outgoing:
    """The publication of the cluster's status: `online`, `draining` or `offline`."""
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
    """The publication of the cluster's info: models, limits and topics."""
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
    """The publication of a node's status."""
    return Outgoing(
        topics.node_status(node_id),
        msgspec.json.encode(NodeStatus(state, session, now_s, reason)),
        retain=True,
        content_type=JSON_TYPE,
        expiry_s=KEEP_S,
    )


def read_node_status(payload: bytes) -> NodeStatus | None:
    """Parse a node's status; None when it is unreadable."""
    try:
        return msgspec.json.decode(payload, type=NodeStatus)
    except _UNREADABLE:
        return None


def node_state_notice(topics: Topics, node_id: str, state: NodeState | None) -> Outgoing:
    """The publication of a node's state; None clears the retained one."""
    return Outgoing(
        topics.node_state(node_id),
        b"" if state is None else msgspec.json.encode(state),
        retain=True,
        content_type=JSON_TYPE,
        expiry_s=KEEP_S,
    )


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node's retained status and state."""

    node_id: str
    status: NodeStatus | None
    state: NodeState

    @property
    def is_here(self) -> bool:
        """Whether the node is neither offline nor lost."""
        return self.status is None or self.status.state not in ("offline", "lost")


def view_nodes(
    messages: Mapping[str, Mapping[str, bytes]], targets: Collection[str] = ()
) -> dict[str, NodeView]:
    """Parse each node's `status` and `state` payloads; unreadable ones count as absent.

    Where `targets` are known, from a topic that only targets may write, other nodes cannot claim
    that role, unless they are starting.
    """
    return {
        node_id: _view(node_id, payloads, targets)
        for node_id, payloads in sorted(messages.items())
        if any(payloads.values())
    }


def _view(node_id: str, payloads: Mapping[str, bytes], targets: Collection[str]) -> NodeView:
    status = read_node_status(payloads.get("status", b""))
    state = read_facts(payloads.get("state", b""))
    is_starting = status is not None and status.state == "starting"
    is_believed = not targets or node_id in targets or is_starting
    return NodeView(node_id, status, _believed(state, is_believed))


def read_facts(payload: bytes) -> Mapping[str, Any]:
    """Parse a JSON object of a node or gateway; empty when it is unreadable."""
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
    """Whether the value can be shown, written and compared without a RecursionError."""
    if not isinstance(value, (dict, list)):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)
