"""Publishes a node's status and state on MQTT, and by its will that the node is lost.

A connection has one will. So each node has this connection for its own status, and a target has a
second one, in its gateway, for the cluster's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from edgecosine.counters import Counters
from edgecosine.errors import BrokerLost
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.name_check import is_question
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api import home_assistant
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.result import NodeState
from edgecosine.protocol.api.retained_topics import (
    RENEW_S,
    NodePresence,
    node_state_notice,
    node_status_notice,
    read_node_status,
)
from edgecosine.protocol.api.topics import NodeStatusTopic, Topics
from edgecosine.security.client_ids import ClientIds

logger = logging.getLogger(__name__)

STATE_PERIOD_S = 1.0
_STATE_AGAIN_S = 600.0
"""Shorter than the expiry of a retained state."""


class NodeStatusPublisher:
    """Publishes for one node; at cancellation it sends `offline` and clears its state."""

    def __init__(
        self,
        *,
        broker: BrokerAddress,
        cluster: str,
        node_id: str,
        session: str | None = None,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
        client_ids: ClientIds | None = None,
        devices: Sequence[Outgoing] = (),
    ) -> None:
        """`devices` are for Home Assistant."""
        self._topics = Topics(cluster)
        self._node_id = node_id
        self._broker = broker
        self._session = session or secrets.token_hex(8)
        self._wall_clock_s = wall_clock_s
        self._devices = devices
        self._presence: NodePresence = "starting"
        self._reason = ""
        self._state: NodeState | None = None
        self._announcement = self._status(self._presence)
        """Renewed unchanged, so that observers see no change."""
        name = f"edgecosine-{cluster}-{node_id}"
        self._mqtt = ReconnectingClient(
            broker,
            name=name,
            client_id=(client_ids or ClientIds()).of(name),
            receive=self._receive,
            filters=(
                self._topics.node_status(node_id),
                *([home_assistant.STATUS_TOPIC] if devices else ()),
            ),
            will=self._status("lost"),
            announce=self._announcements,
            disconnect_messages=self._disconnect_messages,
            counters=counters,
        )

    def __repr__(self) -> str:
        return f"<NodeStatusPublisher {self._node_id} {self._presence} {self._mqtt!r}>"

    async def run(self) -> NoReturn:
        """Publish and renew the status until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mqtt.run(), name=f"{self._node_id}.presence")
            group.create_task(self._warn_if_no_broker(), name=f"{self._node_id}.presence.first")
            while True:
                await asyncio.sleep(RENEW_S)
                if self._mqtt.is_connected:
                    self._mqtt.send(self._announcement)
        raise AssertionError("the publisher ends by an exception")

    async def connected(self) -> None:
        """Wait until the broker is connected."""
        await self._mqtt.connected()

    def publish_presence(self, presence: NodePresence, reason: str = "") -> None:
        """Publish the status, and why it is not `ready`. A draining node stays draining."""
        if self._presence == "draining":
            return
        self._presence, self._reason = presence, reason
        self._announcement = self._status(presence)
        self._mqtt.send(self._announcement)

    def publish_state(self, state: NodeState) -> None:
        """Publish the node's state, and again after each reconnection."""
        self._state = state
        self._mqtt.send(node_state_notice(self._topics, self._node_id, state))

    async def _warn_if_no_broker(self) -> None:
        """Log advice if the first connection fails."""
        try:
            await self._mqtt.reached()
        except BrokerLost as error:
            logger.warning(
                "no broker, retrying: broker=%s reason=%s advice=start one by `edgecosine "
                "broker`, or name yours by --broker", self._broker, error,
            )  # fmt: skip

    def _receive(self, message: Incoming) -> None:
        """Correct a status from the will of an earlier connection or process, and answer a name
        query; send the devices again to a Home Assistant that has started."""
        if message.topic == home_assistant.STATUS_TOPIC:
            if message.payload == home_assistant.ONLINE:
                for device in self._devices:
                    self._mqtt.send(device)
            return
        if self._topics.parse(message.topic) != NodeStatusTopic(self._node_id):
            return
        status = read_node_status(message.payload)
        if (
            status is None
            or status.state in ("lost", "offline")
            or is_question(status, self._session)
        ):
            self._mqtt.send(self._announcement)

    def _status(self, presence: NodePresence) -> Outgoing:
        return node_status_notice(
            self._topics,
            self._node_id,
            presence,
            session=self._session,
            now_s=self._wall_clock_s(),
            reason=self._reason if presence == self._presence else "",
        )

    def _announcements(self) -> Sequence[Outgoing]:
        first = list(self._devices)
        if self._state is not None:
            first.append(node_state_notice(self._topics, self._node_id, self._state))
        return (*first, self._announcement)

    def _disconnect_messages(self) -> Sequence[Outgoing]:
        return (
            node_state_notice(self._topics, self._node_id, None),
            self._status("offline"),
        )


async def publish_state(presence: NodeStatusPublisher, state: Callable[[], NodeState]) -> NoReturn:
    """Publish the node's state when it changes, polled once a period, until cancelled."""
    published: NodeState | None = None
    published_at = 0.0
    while True:
        now, now_s = state(), time.monotonic()
        if now != published or now_s - published_at > _STATE_AGAIN_S:
            presence.publish_state(now)
            published, published_at = now, now_s
        await asyncio.sleep(STATE_PERIOD_S)
