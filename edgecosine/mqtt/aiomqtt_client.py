"""The MQTT client library: the only file that imports aiomqtt and paho.

`open_client` gives a connected client. Library errors leave this file as BrokerLost, and library
messages as `Incoming`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, MQTTMessage
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgecosine.errors import BrokerLost
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.broker_limits import BrokerLimits
from edgecosine.mqtt.broker_probe import other_scheme
from edgecosine.mqtt.inbox import Inbox
from edgecosine.mqtt.message_properties import Fields, incoming, limits_in, properties_of
from edgecosine.mqtt.packets import PacketReader, message_of_qos_0
from edgecosine.mqtt.socket_writer import SocketWriter
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing

_logger = logging.getLogger(__name__)
# This record would show the client id, which is a secret.
_logger.addFilter(lambda record: not str(record.msg).startswith("Sending CONNECT"))

T = TypeVar("T")
Version = Literal["5", "3.1.1"]

_REPLY_TIMEOUT_S = 10.0
_DISCONNECT_TIMEOUT_S = 2.0
_MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + (64 << 10)
_MAX_SENDERS = 64
_FIRST_FAILURE = 128
_UNSUPPORTED_VERSION = (1, 132)
_PROTOCOLS = {"5": aiomqtt.ProtocolVersion.V5, "3.1.1": aiomqtt.ProtocolVersion.V311}

_packet_ids: ContextVar[list[int]] = ContextVar("_packet_ids")
"""Receives the packet id of each message that the current task publishes."""


class VersionUnsupported(BrokerLost):
    """The broker refuses the MQTT version, or does not answer in it."""


class AiomqttClient(aiomqtt.Client):
    """aiomqtt's client, which also records the broker's limits and its refusals of messages.

    Two parts of the library are replaced: writing (`SocketWriter`) and reading. paho needs four
    system calls and six objects for each message, so that a flood would block the event loop. Here
    many messages are read at once, and those that the inbox does not want are dropped before they
    are decoded.
    """

    def __init__(self, inbox: Inbox, version: Version, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = BrokerLimits()
        self.inbox, self.version = inbox, version
        self._packets = PacketReader(inbox, has_properties=version == "5")
        self._writer = SocketWriter(self._client)
        self._is_abandoned = False
        self._refusals: dict[int, str] = {}
        """Reasons for which the broker refused messages, by packet id, until they are read."""
        publish = self._client.publish

        def recording(*args: Any, **kwargs: Any) -> Any:
            info = publish(*args, **kwargs)
            _packet_ids.get().append(info.mid)
            return info

        self._client.publish = recording  # type: ignore[method-assign]
        self._client._packet_read = self._read  # type: ignore[method-assign]

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done when the connection has ended."""
        return self._disconnected

    async def subscribe_qos_1(self, filters: Sequence[str]) -> list[str]:
        """Subscribe; returns the filters that the broker refused.

        Raises BrokerLost.
        """
        with _broker_errors():
            codes = await self.subscribe([(each, 1) for each in filters])
        answers = zip(filters, codes, strict=False)
        return [name for name, code in answers if _number(code) >= _FIRST_FAILURE]

    async def publish_message(self, message: Outgoing) -> str | None:
        """Publish a message; returns the broker's reason if it refused the message, else None.

        Raises BrokerLost.
        """
        properties = _properties(message) if self.version == "5" else None
        # aiomqtt does not return the packet id.
        packet_ids: list[int] = []
        _packet_ids.set(packet_ids)
        with _broker_errors():
            await self.publish(
                message.topic, message.payload, message.qos, message.retain, properties
            )
        return self._refusals.pop(packet_ids[-1], None)

    def write(self, message: Outgoing) -> bool:
        """Send a message of QoS 0 without waiting.

        Returns False, without effect, when the socket has no room: use `publish_message` then.
        """
        if self._disconnected.done():
            return False
        properties = _packed_properties(properties_of(message)) if self.version == "5" else b""
        return self._writer.put(message_of_qos_0(message, properties))

    def poll(self) -> None:
        """Read from the socket now."""
        self._client.loop_read()

    async def close(self) -> None:
        """Disconnect, within a bounded time."""
        with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(_DISCONNECT_TIMEOUT_S):
                await self.__aexit__(None, None, None)
        self.abandon()

    def abandon(self) -> None:
        """Close the socket.

        aiomqtt leaves a connection that got no answer open, with a task that keeps it alive, and
        has no public way to end it.
        """
        self._is_abandoned = True
        self._client.disconnect()

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109
        # asyncio.wait_for of Python 3.11, which aiomqtt uses, can lose a cancellation.
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("no answer in time") from None

    def _client_connect(self) -> None:
        """Called in a thread, which may connect after its caller has given up."""
        super()._client_connect()
        if self._is_abandoned:
            self._loop.call_soon_threadsafe(self._client.disconnect)

    def _on_socket_open(self, client: PahoClient, userdata: Any, sock: Any) -> None:
        if not self._is_abandoned:
            super()._on_socket_open(client, userdata, sock)

    def _on_disconnect(self, *args: Any) -> None:
        # aiomqtt would raise here, before paho has closed the socket.
        if not self._connected.cancelled():
            super()._on_disconnect(*args)

    def _on_publish(
        self, client: PahoClient, userdata: Any, mid: int, reason_code: Any, properties: Properties
    ) -> None:
        if _number(reason_code) >= _FIRST_FAILURE:
            self._refusals[mid] = f"the broker answered: {reason_code}"
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_connect(
        self, client: PahoClient, userdata: Any, flags: Any, reason_code: Any,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        self.limits = limits_in(properties)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _read(self) -> MQTTErrorCode:
        """Replaces paho's reading of one packet."""
        client = self._client
        try:
            data = client._sock_recv(self._packets.chunk_bytes)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_AGAIN
        except OSError:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if not data:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        client._last_bytes_received = time.monotonic()
        try:
            for command, body in self._packets.read(data):
                client._in_packet = {
                    "command": command, "have_remaining": 1, "remaining_count": [],
                    "remaining_mult": 1, "remaining_length": len(body), "packet": body,
                    "to_process": 0, "pos": 0,
                }  # fmt: skip
                code = client._packet_handle()
                if code > 0:
                    return code
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        # Otherwise paho would read once more for each of our messages in flight.
        return MQTTErrorCode.MQTT_ERR_AGAIN

    def _on_message(self, client: PahoClient, userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        acknowledge = functools.partial(self._acknowledge, message.mid, message.qos)
        self.inbox.put(incoming(message, acknowledge), 1 if message.qos else 0)

    def _acknowledge(self, packet_id: int, qos: int) -> None:
        self._client.ack(packet_id, qos)

    def _on_socket_register_write(
        self, client: PahoClient, userdata: object, sock: socket.socket
    ) -> None:
        del client, userdata
        self._writer.wake(sock)

    def _on_socket_unregister_write(
        self, client: PahoClient, userdata: object, sock: socket.socket
    ) -> None:
        del client, userdata
        self._writer.unwatch(sock)


async def open_client(
    address: BrokerAddress,
    client_id: str,
    will: Outgoing | None,
    version: Version,
    *,
    session_s: int,
    inbox: Inbox,
    timeout_s: float = _REPLY_TIMEOUT_S,
) -> AiomqttClient:
    """Connect within `timeout_s`, with one MQTT version.

    Raises VersionUnsupported where another version may succeed, otherwise BrokerLost.
    """
    is_kept = session_s > 0
    client = AiomqttClient(
        inbox,
        version,
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        identifier=client_id,
        protocol=_PROTOCOLS[version],
        will=_will(will, version),
        clean_session=not is_kept if version == "3.1.1" else None,
        clean_start=False if is_kept and version == "5" else MQTT_CLEAN_START_FIRST_ONLY,
        properties=_connect_properties(session_s) if version == "5" else None,
        timeout=timeout_s,
        keepalive=address.keepalive_s,
        socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        tls_context=address.tls(),
        logger=_logger,
    )
    client.pending_calls_threshold = _MAX_SENDERS
    # Otherwise paho acknowledges each message that it reads, even before it is journalled.
    client._client.manual_ack_set(is_kept)
    try:
        await client.__aenter__()
    except BaseException as error:
        is_cut = client._client.socket() is None
        client.abandon()
        if isinstance(error, aiomqtt.MqttError):
            raise await _connect_error(address, error, is_cut=is_cut) from error
        raise
    client.timeout = _REPLY_TIMEOUT_S
    return client


async def _connect_error(
    address: BrokerAddress, error: aiomqtt.MqttError, *, is_cut: bool
) -> BrokerLost:
    message = f"no connection to {address}: {error}"
    has_answered = isinstance(error, aiomqtt.MqttCodeError)
    if is_cut and not has_answered and (hint := await other_scheme(address)):
        return BrokerLost(f"{message}; {hint}")
    if isinstance(error, aiomqtt.MqttCodeError):
        may_be_older = _number(error.rc) in _UNSUPPORTED_VERSION
    else:
        may_be_older = isinstance(error.__context__, TimeoutError)
    kind = VersionUnsupported if may_be_older else BrokerLost
    return kind(message, _reason_code(error))


def _number(code: object) -> int:
    """The number of a return code of MQTT 3.1.1 or of a reason code of MQTT 5."""
    number = getattr(code, "value", code)
    return number if isinstance(number, int) else _FIRST_FAILURE


@contextlib.contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except aiomqtt.MqttError as error:
        cause = error.__cause__ or error
        raise BrokerLost(str(cause), _reason_code(cause)) from error


def _reason_code(error: BaseException) -> int | None:
    """The broker's reason code for a failure; None where it gave none."""
    if not isinstance(error, aiomqtt.MqttCodeError):
        return None
    number = _number(error.rc)
    return number if number >= _FIRST_FAILURE else None


def _will(will: Outgoing | None, version: Version) -> aiomqtt.Will | None:
    if will is None:
        return None
    properties = _properties(will, PacketTypes.WILLMESSAGE) if version == "5" else None
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


def _connect_properties(session_s: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_PACKET_BYTES
    if session_s:
        properties.SessionExpiryInterval = session_s
    return properties


def _properties(message: Outgoing, packet: int = PacketTypes.PUBLISH) -> Properties | None:
    fields = properties_of(message)
    return _made_properties(packet, fields) if fields else None


# Making properties costs more than sending a small message.
@functools.lru_cache(maxsize=256)
def _made_properties(packet: int, fields: Fields) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in fields:
        setattr(properties, name, list(value) if isinstance(value, tuple) else value)
    return properties


@functools.lru_cache(maxsize=256)
def _packed_properties(fields: Fields) -> bytes:
    properties = _made_properties(PacketTypes.PUBLISH, fields)
    return bytes(properties.pack())  # type: ignore[no-untyped-call]
