"""Checks at start that no other node uses the same name, since both would write the same topics.

A starting node publishes a query on its status topic. A running node of this name answers; a
retained message of a dead one does not. Of two nodes that query at once, the one whose query the
broker delivers first continues: both receive the queries in one order.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Final

from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.retained_topics import NodeStatus, node_status_notice, read_node_status
from edgecosine.protocol.api.topics import Topics

_PATIENCE_S: Final = 1.5
_CONNECT_S: Final = 10.0
_QUESTION: Final = "asks whether its name is free"
_RUNNING: Final = frozenset({"starting", "ready", "unavailable"})


async def check_name(broker: BrokerAddress, cluster: str, node_id: str) -> None:
    """Raises ConfigError when another node of this name is running; passes without a broker."""
    check = _Check(broker, cluster, node_id)
    is_taken = False
    async with asyncio.TaskGroup() as group:
        running = group.create_task(check.client.run(), name=f"{node_id}.name")
        with contextlib.suppress(BrokerLost, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                is_taken = await check.is_taken()
        running.cancel()
    if is_taken:
        raise ConfigError(
            "node_id", node_id, "a name that no other node of the cluster uses; a node of this "
            "name is running: stop it, or choose another --node-id",
        )  # fmt: skip


def is_question(status: NodeStatus, session: str) -> bool:
    """Whether the status is a name query of another session."""
    return status.reason == _QUESTION and status.session != session


class _Check:
    def __init__(self, broker: BrokerAddress, cluster: str, node_id: str) -> None:
        self._topics = Topics(cluster)
        self._session = secrets.token_hex(8)
        self._question = node_status_notice(
            self._topics, node_id, "starting", session=self._session, now_s=time.time(),
            reason=_QUESTION,
        )  # fmt: skip
        self._is_claimed = False
        """Whether the broker holds the status of a node that runs, or failed without a will."""
        self._is_taken = asyncio.Event()
        self._has_asked = asyncio.Event()
        self.client = ReconnectingClient(
            broker,
            name=f"edgecosine-{cluster}-{node_id}-{self._session}",
            receive=self._receive,
            filters=(self._topics.node_status(node_id),),
            announce=lambda: (self._question,),
        )

    async def is_taken(self) -> bool:
        """Send the query, and wait for an answer where one is possible.

        Raises BrokerLost.
        """
        await self.client.reached()
        await self._has_asked.wait()
        if not self._is_claimed:
            return False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._is_taken.wait()
        except TimeoutError:
            return False

    def _receive(self, message: Incoming) -> None:
        status = read_node_status(message.payload)
        if status is None:
            return
        if status.session == self._session:
            self._has_asked.set()
        elif is_question(status, self._session) and self._has_asked.is_set():
            return  # that node sees our query first
        elif status.state in _RUNNING:
            self._is_claimed = True
            if not message.retain:
                self._is_taken.set()
