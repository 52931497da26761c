"""What the broker holds about a cluster, kept up to date: its status, its info, its nodes.

It knows when everything that was held has arrived: a message to ourselves, sent after subscribing,
comes after the retained ones.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from edgecosine.protocol.notices import (
    DRAINING,
    ONLINE,
    NodeView,
    read_facts,
    read_node_status,
    view_nodes,
)
from edgecosine.protocol.topics import (
    AnyTopic,
    InfoTopic,
    NodeStateTopic,
    NodeStatusTopic,
)

MAX_NODES = 1024
_GRACE_S = 1.0
"""How long after the mark a slow broker may still send a retained message."""


class Watch:
    """The retained messages of one cluster."""

    def __init__(self) -> None:
        self.is_online = False
        self.is_draining = False
        """Whether the gateway that is there lets nobody else in."""
        self.offline_since = math.inf
        """In the loop's time; infinite when the gateway was never seen."""
        self.unavailable: dict[str, str] = {}
        """Nodes that say that they cannot work now, and why."""
        self._info = b"{}"
        self._node_messages: dict[str, dict[str, bytes]] = {}
        self._is_complete = asyncio.Event()
        self._comes_online = asyncio.Event()
        self._has_changed = asyncio.Event()

    async def complete(self) -> None:
        """Wait until all that the broker held has arrived."""
        await self._is_complete.wait()

    async def online(self) -> bool:
        """Whether a gateway is there, a short time granted for saying so."""
        await self.complete()
        if not self.is_online:
            try:
                async with asyncio.timeout(_GRACE_S):
                    await self._comes_online.wait()
            except TimeoutError:
                return False
        return self.is_online

    async def changed(self) -> None:
        """Wait for a change since the last call."""
        await self._has_changed.wait()
        self._has_changed.clear()

    def nodes(self) -> dict[str, NodeView]:
        """Every node of which anything is held."""
        return view_nodes(self._node_messages)

    def info(self) -> Mapping[str, Any]:
        """What the cluster says that it serves; empty when it says nothing that can be read."""
        return read_facts(self._info)

    def take_mark(self) -> None:
        """The message to ourselves has come."""
        self._is_complete.set()

    def take_status(self, payload: bytes) -> bool:
        """The cluster said whether it is there; True when that is news."""
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

    def take(self, topic: AnyTopic | None, payload: bytes) -> None:
        """Any other retained message came."""
        match topic:
            case InfoTopic():
                self._info = payload
            case NodeStatusTopic(node_id):
                self._take_node(node_id, "status", payload)
                self._note_unavailable(node_id, payload)
            case NodeStateTopic(node_id):
                self._take_node(node_id, "state", payload)
        self._has_changed.set()

    def lose(self) -> bool:
        """The connection broke, so nothing is known; True when a gateway had been there."""
        self._is_complete.clear()
        return self.take_status(b"")

    def _note_unavailable(self, node_id: str, payload: bytes) -> None:
        status = read_node_status(payload)
        if status is not None and status.state == "unavailable" and node_id in self._node_messages:
            self.unavailable[node_id] = status.reason
        else:
            self.unavailable.pop(node_id, None)

    def _take_node(self, node_id: str, which: str, payload: bytes) -> None:
        if node_id in self._node_messages or len(self._node_messages) < MAX_NODES:
            self._node_messages.setdefault(node_id, {})[which] = payload
