"""Clears a broker's retained messages of a node that is gone; a live node is left alone.

A node that failed together with its broker looks alive there, so it is watched for one lease: a
live node renews its status within that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable
from typing import Final

from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import Connection, connect
from edgecosine.protocol.api.home_assistant import node_topic
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.retained_topics import KEEP_S, LEASE_S, read_node_status
from edgecosine.protocol.api.topics import Topics

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 5.0


async def forget(broker: BrokerAddress, cluster: str, node_id: str) -> None:
    """Clear a node's retained messages.

    Raises ConfigError when the node is unknown or alive, BrokerLost when the broker is offline or
    refuses.
    """
    topics = Topics(cluster)
    about = (topics.node_status(node_id), topics.node_state(node_id), topics.membership(node_id))
    name = f"edgecosine-forget-{secrets.token_hex(16)}"
    mark = topics.response(name, "mark")
    async with connect(broker, client_id=name) as connection:
        await connection.subscribe((*about, mark))
        await connection.publish(Outgoing(mark, b""))
        held = await _until(connection, mark)
        if not any(message.payload for message in held):
            allowed = f"a node with retained messages at the broker of cluster {cluster}"
            raise ConfigError("NODE", node_id, allowed)
        if not _is_gone(held, topics.node_status(node_id)) and await _is_alive(connection):
            raise ConfigError(
                "NODE", node_id, "a node that is gone; this one is alive: stop it first"
            )
        for topic in about:
            await connection.publish(Outgoing(topic, b"", retain=True))
        await connection.publish(Outgoing(mark, b""))
        cleared = {each.topic for each in await _until(connection, mark) if not each.payload}
        if not cleared >= {message.topic for message in held if message.payload}:
            raise BrokerLost(_NOT_ALLOWED)
        # Not subscribed to, since only a target may read it.
        try:
            await connection.publish(Outgoing(node_topic(topics, node_id), b"", retain=True))
        except BrokerLost as error:
            logger.warning(
                "device not cleared in Home Assistant: node=%s reason=%s", node_id, error
            )


_NOT_ALLOWED: Final = (
    "the broker does not allow clearing a node's messages: use the credentials of a target"
)


async def _until(connection: Connection, last: str) -> list[Incoming]:
    """All messages before the first one on the topic `last`.

    Raises BrokerLost when none comes.
    """
    found: list[Incoming] = []
    try:
        async with (
            asyncio.timeout(_ANSWER_S),
            contextlib.aclosing(connection.messages()) as messages,
        ):
            async for message in messages:
                if message.topic == last:
                    return found
                found.append(message)
    except TimeoutError:
        raise BrokerLost(_NOT_ALLOWED) from None
    raise BrokerLost("the connection ended")


def _is_gone(held: Iterable[Incoming], status_topic: str) -> bool:
    """Whether the node's status is offline or lost, or its lease has expired."""
    if any(not message.retain for message in held):
        return False
    statuses = [message for message in held if message.topic == status_topic]
    for message in statuses:
        status = read_node_status(message.payload)
        left_s = KEEP_S if message.expiry_s is None else message.expiry_s
        is_silent = KEEP_S - left_s > LEASE_S
        if not is_silent and (status is None or status.state not in ("offline", "lost")):
            return False
    return bool(statuses)


async def _is_alive(connection: Connection) -> bool:
    """Whether the node sends a message within one lease."""
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(LEASE_S),
            contextlib.aclosing(connection.messages()) as messages,
        ):
            async for message in messages:
                if message.payload:
                    return True
    return False
