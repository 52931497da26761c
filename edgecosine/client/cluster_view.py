"""A live view of a cluster's retained messages: its status, its info and its nodes.

The view is complete once a message to ourselves, sent after subscribing, has arrived: it comes
after the retained ones.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from edgecosine.protocol.api.retained_topics import (
    DRAINING,
    KEEP_S,
    LEASE_S,
    ONLINE,
    NodeView,
    read_facts,
    read_node_status,
    view_nodes,
)
from edgecosine.protocol.api.topics import (
    AnyTopic,
    InfoTopic,
    NodeStateTopic,
    NodeStatusTopic,
)

MAX_NODES = 1024
_SILENT = "it stopped renewing its status"
_GRACE_S = 1.0
"""Seconds after our own message in which a slow broker may still send a retained one."""


class ClusterView:
    """The retained messages of one cluster."""

    def __init__(self) -> None:
        self.is_online = False
        self.is_draining = False
        """Whether the gateway accepts no new requests."""
        self.offline_since = math.inf
        """Loop time in seconds; infinite when no gateway was ever online."""
        self._unavailable: dict[str, str] = {}
        """Reasons of nodes whose status is `unavailable`, by node id."""
        self._info = b"{}"
        self._node_messages: dict[str, dict[str, bytes]] = {}
        self._seen_at: dict[str, float] = {}
        """Loop time at which each node sent its last status."""
        self._is_complete = asyncio.Event()
        self._comes_online = asyncio.Event()
        self._has_changed = asyncio.Event()

    async def complete(self) -> None:
        """Wait until all retained messages have arrived."""
        await self._is_complete.wait()

    async def online(self) -> bool:
        """Whether a gateway is online, after a short wait for its status."""
        await self.complete()
        if not self.is_online:
            try:
                async with asyncio.timeout(_GRACE_S):
                    await self._comes_online.wait()
            except TimeoutError:
                return False
        return self.is_online

    async def changed(self) -> None:
        """Wait for a change since the last call, such as a node whose lease expires."""
        silent = self._silent(LEASE_S)
        while not self._has_changed.is_set() and self._silent(LEASE_S) == silent:
            try:
                async with asyncio.timeout(LEASE_S / 4):
                    await self._has_changed.wait()
            except TimeoutError:
                continue
        self._has_changed.clear()

    @property
    def unavailable(self) -> dict[str, str]:
        """Reasons of unavailable targets, by node id."""
        targets = self._targets()
        return {
            node_id: reason
            for node_id, reason in self._unavailable.items()
            if not targets or node_id in targets
        }

    @property
    def starting(self) -> list[str]:
        """A sentence for each target that is starting."""
        return [
            f"{node_id} is starting: {view.status.reason}"
            for node_id, view in self.nodes().items()
            if view.status is not None
            and view.status.state == "starting"
            and view.state.get("role") == "target"
        ]

    def nodes(self) -> dict[str, NodeView]:
        """Every node with retained messages that have not expired.

        A node that stops renewing its status is lost, even without a will: it may have failed
        together with its broker.
        """
        for node_id in self._silent(KEEP_S):
            self._forget(node_id)
        views = view_nodes(self._node_messages, self._targets())
        for node_id in self._silent(LEASE_S):
            view = views.get(node_id)
            if view is not None and view.is_here and view.status is not None:
                status = msgspec.structs.replace(view.status, state="lost", reason=_SILENT)
                views[node_id] = replace(view, status=status)
        return views

    def info(self) -> Mapping[str, Any]:
        """The cluster's info; empty when there is none or it is unreadable."""
        return read_facts(self._info)

    def take_mark(self) -> None:
        """Handle the message to ourselves."""
        self._is_complete.set()

    def take_status(self, payload: bytes) -> bool:
        """Handle the cluster's status; returns whether it changed."""
        self.is_draining = payload == DRAINING
        is_online = payload in (ONLINE, DRAINING)
        if is_online == self.is_online:
            return False
        self.is_online = is_online
        if is_online:
            self._comes_online.set()
        else:
            self._comes_online.clear()
            self.offline_since = asyncio.get_running_loop().time()
        self._has_changed.set()
        return True

    def take(self, topic: AnyTopic | None, payload: bytes, age_s: float = 0.0) -> None:
        """Handle any other retained message, sent `age_s` seconds ago as far as is known."""
        match topic:
            case InfoTopic():
                self._info = payload
            case NodeStatusTopic(node_id):
                if not self._take_node(node_id, "status", payload, age_s):
                    return
                self._note_unavailable(node_id, payload)
            case NodeStateTopic(node_id):
                self._take_node(node_id, "state", payload, None)
        self._has_changed.set()

    def lose(self) -> bool:
        """Handle the loss of the connection; returns whether a gateway was online."""
        self._is_complete.clear()
        return self.take_status(b"")

    def _note_unavailable(self, node_id: str, payload: bytes) -> None:
        status = read_node_status(payload)
        if status is not None and status.state == "unavailable" and node_id in self._node_messages:
            self._unavailable[node_id] = status.reason
        else:
            self._unavailable.pop(node_id, None)

    def _take_node(self, node_id: str, which: str, payload: bytes, age_s: float | None) -> bool:
        """Store a node's message; returns whether it changed anything."""
        if node_id not in self._node_messages and len(self._node_messages) >= MAX_NODES:
            return False
        if age_s is not None:
            was_silent = node_id in self._silent(LEASE_S)
            self._seen_at[node_id] = _now() - age_s
        else:
            was_silent = False
        messages = self._node_messages.setdefault(node_id, {})
        is_change = messages.get(which) != payload or was_silent
        messages[which] = payload
        return is_change

    def _targets(self) -> Collection[str]:
        """The targets' ids, from the cluster's info, which drafters cannot write; else empty."""
        targets = self.info().get("targets")
        return targets if isinstance(targets, list) else ()

    def _silent(self, for_s: float) -> set[str]:
        """Nodes without a status in the last `for_s` seconds."""
        since = _now() - for_s
        return {node_id for node_id, seen_at in self._seen_at.items() if seen_at < since}

    def _forget(self, node_id: str) -> None:
        for known in (self._node_messages, self._seen_at, self._unavailable):
            known.pop(node_id, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
