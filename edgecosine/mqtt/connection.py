"""One connection to an MQTT broker, from connect to disconnect.

Every failure is raised as BrokerLost, and every wait ends: on an acknowledgement, on the end of the
connection, on a timeout, or on cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import NoReturn

from edgecosine.errors import BrokerLost
from edgecosine.mqtt.aiomqtt_client import AiomqttClient, Version, VersionUnsupported, open_client
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.inbox import Inbox
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 2.0
_POLL_S = 1.0
_NO_RETAINED, _NO_QOS = 154, 155


class Connection:
    """An open connection; `connect` makes it."""

    def __init__(self, client: AiomqttClient) -> None:
        self._client = client
        self.version = client.version
        self.limits = client.limits

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1.

        Raises BrokerLost when the connection ends or the broker refuses.
        """
        if filters and (refused := await self._client.subscribe_qos_1(filters)):
            raise BrokerLost(f"the broker refuses the subscription to {', '.join(refused)}")

    async def publish(self, message: Outgoing) -> str | None:
        """Publish; with QoS 1, wait until the broker has acknowledged or refused the message.

        Returns the broker's reason for a refusal, None for success. Messages are sent in the order
        of the calls. Raises BrokerLost, also for a message beyond the broker's limits, which is not
        sent.
        """
        if objection := self.limits.objection(message):
            raise BrokerLost(objection)
        return await self._client.publish_message(self.limits.fit(message))

    def write(self, message: Outgoing) -> bool:
        """Publish a message of QoS 0, within the broker's limits, without waiting; returns False
        where `publish` must wait for the socket or report a failure."""
        return self._client.write(self.limits.fit(message))

    def poll(self) -> None:
        """Read from the socket now, so that other waits end when it was reset.

        libuv stops polling a socket that was reset and uvloop reports it to no reader, so that
        aiomqtt would notice only when it has to send a heartbeat.
        """
        self._client.poll()

    async def watch(self) -> NoReturn:
        """Poll the socket regularly, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            self.poll()

    async def messages(self) -> AsyncGenerator[Incoming, None]:
        """The messages that arrive, until the connection ends.

        Raises BrokerLost.
        """
        inbox, end = self._client.inbox, self._client.ended
        end.add_done_callback(lambda _: inbox.wake())
        while True:
            while (message := inbox.take()) is not None:
                yield message
                # Let other tasks run, among them the one that reads the socket.
                await asyncio.sleep(0)
            if end.done():
                raise BrokerLost(str(end.exception() or "the connection has ended"))
            await inbox.arrival()


@contextlib.asynccontextmanager
async def connect(
    address: BrokerAddress,
    *,
    client_id: str,
    will: Outgoing | None = None,
    version: Version | None = None,
    session_s: int = 0,
    inbox: Inbox | None = None,
) -> AsyncIterator[Connection]:
    """Connect, and disconnect at the end, so that the broker sends the will only after a failure.

    With `session_s` the broker keeps our subscriptions, and messages of QoS 1 for them, while we
    are away (with MQTT 5 for so many seconds); each message must then be acknowledged. Without
    `version`, MQTT 5 is tried and then 3.1.1. Arrived messages wait in `inbox`. Raises BrokerLost.
    """
    inbox = Inbox() if inbox is None else inbox
    inbox.clear()
    dial = functools.partial(_dial, address, client_id=client_id, session_s=session_s, inbox=inbox)
    try:
        client = await dial(will=will, version=version)
    except BrokerLost as error:
        if will is None or (lesser := _without(will, error.reason_code)) == will:
            raise
        inbox.clear()
        client = await dial(will=lesser, version=version)
    try:
        yield Connection(client)
    finally:
        await client.close()


async def _dial(
    address: BrokerAddress,
    *,
    client_id: str,
    will: Outgoing | None,
    version: Version | None,
    session_s: int,
    inbox: Inbox,
) -> AiomqttClient:
    dial = functools.partial(
        open_client, address, client_id, will, session_s=session_s, inbox=inbox
    )
    if version is None:
        try:
            return await dial("5", timeout_s=_PROBE_TIMEOUT_S)
        except VersionUnsupported:
            logger.info("broker does not answer MQTT 5, trying 3.1.1: broker=%s", address)
    return await dial(version or "3.1.1")


def _without(will: Outgoing, reason_code: int | None) -> Outgoing:
    """The will, without the property for which the broker refused it."""
    return replace(
        will,
        retain=will.retain and reason_code != _NO_RETAINED,
        qos=0 if reason_code == _NO_QOS else will.qos,
    )
