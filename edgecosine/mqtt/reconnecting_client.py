"""An MQTT client that reconnects.

`send` queues a message and never waits; received messages are passed to a callback. After a lost
connection the client reconnects with jittered back-off, subscribes and announces again, and sends
the rest of its outbox. When cancelled, it empties the outbox before it disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from edgecosine.backoff import Backoff
from edgecosine.counters import Counters
from edgecosine.errors import BrokerLost
from edgecosine.log_throttle import LogThrottle
from edgecosine.mqtt.aiomqtt_client import Version
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import Connection, connect
from edgecosine.mqtt.connection_tasks import ConnectionTasks
from edgecosine.mqtt.inbox import Inbox
from edgecosine.mqtt.outbox import Outbox
from edgecosine.mqtt.refused_messages import RefusedMessages
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Incoming, Outgoing

logger = logging.getLogger(__name__)

_MAX_UNACKNOWLEDGED = 16
"""Below paho's own window of 20, so that paho never reorders what we send."""
_DISCONNECT_TIMEOUT_S = 3.0
_BACKOFF = Backoff(first_s=0.075, longest_s=7.5, jitter=2 / 3)
"""Delays of 0.05 s to 5 s, give or take half."""
_SHOWN_CHARACTERS = 256
_QUIET_S = 10.0
"""A connection that lasted this long resets the back-off; with two nodes of one name none does."""


class ReconnectingClient:
    """A connection to the broker that is renewed until cancelled.

    `announce` gives the messages to send after each connect, `disconnect_messages` those before a
    clean disconnect. `lost` is called when an established connection ends, `delivered` for each
    message that the broker accepted, `refused` for each that is given up, with the reason. With
    `session_s` the broker keeps messages while we are away, and each must be acknowledged.

    A broker gives a session to any connection with its `client_id`, so this is a secret, drawn by
    default. `name` is for logs.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        name: str,
        receive: Callable[[Incoming], None],
        filters: Sequence[str] = (),
        will: Outgoing | None = None,
        announce: Callable[[], Sequence[Outgoing]] = tuple,
        disconnect_messages: Callable[[], Sequence[Outgoing]] = tuple,
        lost: Callable[[], None] = lambda: None,
        counters: Counters | None = None,
        delivered: Callable[[Outgoing], None] = lambda _: None,
        refused: Callable[[Outgoing, str], None] = lambda _, __: None,
        session_s: int = 0,
        client_id: str | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._client_id = client_id or f"{name}-{secrets.token_hex(16)}"
        self._receive = receive
        self._filters = filters
        self.will = will
        """The message that the broker publishes when a connection is lost, read at each one."""
        self._announce = announce
        self._disconnect_messages = disconnect_messages
        self._lost, self._session_s = lost, session_s
        self._delivered, self._refused = delivered, refused
        self._counters = counters or Counters()
        self._inbox = Inbox() if inbox is None else inbox
        self._outbox = Outbox(on_drop=partial(self._counters.count, "dropped_messages"))
        self._refusals = RefusedMessages()
        self._announced: Outgoing | None = None
        """The announcement in flight, if any."""
        self._num_failures = 0
        self._complaints = LogThrottle()
        self._has_connected = False
        self._version: Version | None = None
        self._is_connected = asyncio.Event()
        self._has_tried = asyncio.Event()
        self._failure: BrokerLost | None = None

    def __repr__(self) -> str:
        where = "connected" if self.is_connected else "away"
        return f"<ReconnectingClient {self._name} {where} {self._outbox!r}>"

    @property
    def is_connected(self) -> bool:
        """Whether the broker is connected, with our subscriptions and announcements in place."""
        return self._is_connected.is_set()

    @property
    def is_congested(self) -> bool:
        """Whether the broker is slower than our messages, so that QoS 0 is dropped."""
        return self._outbox.is_full

    @property
    def version(self) -> Version | None:
        """The broker's MQTT version, once known."""
        return self._version

    def send(self, message: Outgoing) -> None:
        """Queue a message; it is sent once the broker is connected.

        Raises ValueError for a payload over `MAX_PAYLOAD_BYTES`, for which a broker would end each
        connection.
        """
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"{len(message.payload)} bytes are too many for {message.topic}")
        self._outbox.put(message)

    async def connected(self) -> None:
        """Wait until the broker is connected."""
        await self._is_connected.wait()

    async def reached(self) -> None:
        """Wait for the first attempt to connect.

        Raises BrokerLost when it failed.
        """
        await self._has_tried.wait()
        if self._failure is not None:
            raise BrokerLost(str(self._failure)) from self._failure

    async def run(self) -> NoReturn:
        """Stay connected until cancelled."""
        self._num_failures = 0
        while True:
            begun = _now()
            try:
                async with connect(
                    self._address,
                    client_id=self._client_id,
                    will=self.will,
                    version=self._version,
                    session_s=self._session_s,
                    inbox=self._inbox,
                ) as connection:
                    self._version = connection.version
                    await self._serve(connection)
            except BrokerLost as error:
                self._note_failure(error)
            if _now() - begun > _QUIET_S:
                self._num_failures = 0
            self._num_failures += 1
            await asyncio.sleep(_BACKOFF.delay_s(self._num_failures))

    def _note_failure(self, error: BrokerLost) -> None:
        # Only the first failed attempt is a warning.
        level = logging.WARNING if self._failure is None else logging.DEBUG
        logger.log(level, "broker lost: name=%s reason=%s", self._name, error)
        if self._is_connected.is_set():
            self._is_connected.clear()
            self._lost()
        else:
            # The next attempt may reach another broker, with another version.
            self._version = None
        self._failure = error
        self._has_tried.set()

    async def _serve(self, connection: Connection) -> None:
        """Serve one connection until it ends or we are cancelled.

        A lost broker is a value here, not an error of a task: a task group that ends with errors
        would lose a cancellation that came at the same time.

        Raises BrokerLost.
        """
        tasks, leave_until = ConnectionTasks(self._name), 0.0
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    tasks.start(group, partial(self._read, connection, tasks))
                    tasks.start(group, connection.watch)
                    tasks.start(group, partial(self._announce_and_write, connection, group, tasks))
                    loss = await tasks.lost()
                except asyncio.CancelledError:
                    leave_until = _now() + _DISCONNECT_TIMEOUT_S
                    await tasks.finish(leave_until)
                    raise
                finally:
                    tasks.end()
        except asyncio.CancelledError:
            self._outbox.rewind()
            await self._leave(connection, leave_until)
            raise
        finally:
            alone = self._outbox.lose()
        self._note_loss(self._announced or alone, loss)
        raise BrokerLost(str(loss)) from loss

    def _note_loss(self, alone: Outgoing | None, loss: BrokerLost) -> None:
        """Give up the message that was alone in flight, if it was so at the last loss, too."""
        self._announced = None
        if alone is not None and self._refusals.lost(alone, _now(), loss.reason_code):
            self._outbox.give_up(alone)
            self._num_failures = 0
            self._give_up(alone, f"the broker ended the connection for it twice: {loss}")

    def _give_up(self, message: Outgoing, reason: str) -> None:
        self._counters.count("undeliverable")
        # Some messages are renewed every second.
        if self._complaints.is_due(message.topic, _now()):
            logger.warning(
                "message given up: name=%s topic=%r bytes=%d reason=%s",
                self._name, message.topic[:_SHOWN_CHARACTERS], len(message.payload), reason,
            )  # fmt: skip
        self._refused(message, reason)

    def _note_success(self, connection: Connection) -> None:
        logger.info(
            "connected to broker: name=%s broker=%s mqtt=%s",
            self._name,
            self._address,
            connection.version,
        )
        if self._has_connected:
            self._counters.count("reconnected")
        self._has_connected = True
        self._failure = None
        self._is_connected.set()
        self._has_tried.set()

    async def _read(self, connection: Connection, tasks: ConnectionTasks) -> None:
        await tasks.is_announced.wait()
        async for message in connection.messages():
            # A received message may need an answer, which needs room in the outbox.
            await self._outbox.room()
            self._receive(message)

    async def _announce_and_write(
        self, connection: Connection, group: asyncio.TaskGroup, tasks: ConnectionTasks
    ) -> None:
        await connection.subscribe(self._filters)
        announcement = self._announce()
        tasks.is_announced.set()
        for message in announcement:
            if not self._is_refused(connection, message):
                self._announced = message
                refusal = await connection.publish(message)
                self._announced = None
                self._note(message, refusal)
        if not tasks.is_ending:
            self._note_success(connection)
        room = asyncio.Semaphore(min(_MAX_UNACKNOWLEDGED, connection.limits.max_in_flight))
        while not tasks.is_ending:
            await room.acquire()
            number, message = await self._outbox.take()
            if message.qos == 0 and self._is_written(connection, number, message):
                room.release()
                continue
            # Tasks start in the order in which they were made, so messages keep theirs.
            tasks.deliver(group, partial(self._deliver, connection, number, message, room))
            await asyncio.sleep(0)  # it starts before a message that needs no task

    async def _deliver(
        self, connection: Connection, number: int, message: Outgoing, room: asyncio.Semaphore
    ) -> None:
        try:
            await self._publish(connection, number, message)
        finally:
            room.release()

    async def _publish(self, connection: Connection, number: int, message: Outgoing) -> None:
        """Send one message of the outbox, or give it up.

        Raises BrokerLost.
        """
        if self._is_refused(connection, message):
            self._outbox.settle(number)
        else:
            self._settle(number, message, await connection.publish(message))

    def _is_written(self, connection: Connection, number: int, message: Outgoing) -> bool:
        """Send a message of QoS 0 of the outbox if that needs no wait; returns whether it did."""
        if self._is_refused(connection, message):
            self._outbox.settle(number)
            return True
        if not connection.write(message):
            return False
        self._settle(number, message, None)
        return True

    def _settle(self, number: int, message: Outgoing, refusal: str | None) -> None:
        """Remove a message that was sent from the outbox."""
        self._outbox.settle(number)
        self._note(message, refusal)
        if refusal is None:
            self._delivered(message)

    def _note(self, message: Outgoing, refusal: str | None) -> None:
        """Record the broker's answer to a message."""
        self._refusals.taken(message)
        if refusal is not None:
            self._give_up(message, refusal)

    def _is_refused(self, connection: Connection, message: Outgoing) -> bool:
        """Whether the broker would end the connection for a message; if so, it is given up."""
        objection = connection.limits.objection(message) or self._refusals.objection(
            message, _now()
        )
        if objection is not None:
            self._give_up(message, objection)
        return objection is not None

    async def _leave(self, connection: Connection, until: float) -> None:
        """Send the rest of the outbox, then the disconnect messages, until `until`."""
        connection.poll()
        with contextlib.suppress(BrokerLost, TimeoutError):
            async with asyncio.timeout_at(until):
                while self._outbox:
                    await self._publish(connection, *await self._outbox.take())
                for message in self._disconnect_messages():
                    if not self._is_refused(connection, message):
                        await connection.publish(message)


def _now() -> float:
    return asyncio.get_running_loop().time()
