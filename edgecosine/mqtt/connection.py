"""One life of one connection to an MQTT broker. The only file that imports aiomqtt and paho.

It knows nothing of topics and payloads. Every failure leaves as BrokerLost, and every wait ends: on
an acknowledgement, on the end of the connection, on `_REPLY_TIMEOUT_S`, or on cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal, NoReturn

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, MQTTMessage
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgecosine.errors import BrokerLost
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.broker_limits import BrokerLimits
from edgecosine.mqtt.broker_probe import other_way
from edgecosine.mqtt.inbox import Inbox
from edgecosine.mqtt.packets import Packets, is_qos_0, peek
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Incoming, Outgoing

logger = logging.getLogger(__name__)
_paho_logger = logger.getChild("paho")
# It would write out the client id, which is a secret.
_paho_logger.addFilter(lambda record: not str(record.msg).startswith("Sending CONNECT"))

Version = Literal["5", "3.1.1"]

_PROBE_TIMEOUT_S = 2.0
_REPLY_TIMEOUT_S = 10.0
_GOODBYE_TIMEOUT_S = 2.0
_LOOK_S = 1.0
_READ_BYTES = 256 << 10
_FEW_BYTES = 64 << 10
"""Read at one time while many small messages come, so that the loop has its turns."""
_MANY = 32
"""So many messages that are not wanted are looked at in what is read at one time."""
_MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + (64 << 10)
_MAX_SENDERS = 64
_FIRST_FAILURE = 128
_UNSUPPORTED_VERSION = (1, 132)
_NO_RETAINED, _NO_QOS = 154, 155
_PROTOCOLS = {"5": aiomqtt.ProtocolVersion.V5, "3.1.1": aiomqtt.ProtocolVersion.V311}


_numbers: ContextVar[list[int]] = ContextVar("_numbers")
"""Where the number of a message is noted as it is sent."""


class _Client(aiomqtt.Client):
    """aiomqtt's client, asked to write only to sockets that are there, to read into an inbox, and
    to keep what a broker says of its limits and of messages that it refuses.

    aiomqtt registers a socket a moment later and by its number, when the socket may be closed and
    the number another one's. paho reads a message in four calls of the system and builds six
    objects of it, so that a flood would hold the loop: here many are read at once, and those that
    the inbox does not want go before they are decoded.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = BrokerLimits()
        self._refusals: dict[int, str] = {}
        """Why the broker refused messages, by their numbers, until that was asked for."""
        publish = self._client.publish

        def noting(*args: Any, **kwargs: Any) -> Any:
            info = publish(*args, **kwargs)
            _numbers.get().append(info.mid)
            return info

        self._client.publish = noting  # type: ignore[method-assign]

    async def put(self, message: Outgoing, properties: Properties | None) -> str | None:
        """Publish; gives why the broker refused the message, if it said so."""
        # aiomqtt keeps the number of a message to itself.
        numbers: list[int] = []
        _numbers.set(numbers)
        await self.publish(message.topic, message.payload, message.qos, message.retain, properties)
        return self._refusals.pop(numbers[-1], None)

    def _on_publish(
        self, client: PahoClient, userdata: Any, mid: int, reason_code: Any, properties: Properties
    ) -> None:
        if _number(reason_code) >= _FIRST_FAILURE:
            self._refusals[mid] = f"the broker says: {reason_code}"
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_connect(
        self, client: PahoClient, userdata: Any, flags: Any, reason_code: Any,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        self.limits = _limits(properties)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def read_into(self, inbox: Inbox, version: Version) -> None:
        """Before it connects."""
        self._inbox, self._packets = inbox, Packets()
        self._num_read = self._num_unwanted = 0
        self._has_properties = version == "5"
        self._client._packet_read = self._read  # type: ignore[method-assign]

    def _read(self) -> MQTTErrorCode:
        """In the place of paho's reading of one packet."""
        client = self._client
        try:
            data = client._sock_recv(_READ_BYTES if self._num_read < _MANY else _FEW_BYTES)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_AGAIN
        except OSError:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if not data:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        client._last_bytes_received = time.monotonic()
        self._packets.feed(data)
        self._num_read = self._num_unwanted = 0
        try:
            while (packet := self._packets.next()) is not None:
                self._num_read += 1
                code = self._handle(*packet)
                if code > 0:
                    return code
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        # Or paho would read on for as many times as messages of ours are on their way.
        return MQTTErrorCode.MQTT_ERR_AGAIN

    def _handle(self, command: int, body: bytearray) -> MQTTErrorCode:
        if is_qos_0(command) and not self._inbox.has_room(len(body)):
            if self._num_unwanted < _MANY:
                said = peek(body, has_properties=self._has_properties)
                is_wanted = said is None or self._inbox.wants(*said)
            else:
                is_wanted = False
            if not is_wanted:
                self._num_unwanted += 1
                self._inbox.leave_out()
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._client._in_packet = {
            "command": command, "have_remaining": 1, "remaining_count": [], "remaining_mult": 1,
            "remaining_length": len(body), "packet": body, "to_process": 0, "pos": 0,
        }  # fmt: skip
        return self._client._packet_handle()

    def _on_message(self, client: PahoClient, userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        acknowledge = functools.partial(self._acknowledge, message.mid, message.qos)
        self._inbox.put(_incoming(message, acknowledge), 1 if message.qos else 0)

    def _on_socket_register_write(
        self, client: PahoClient, userdata: object, sock: socket.socket
    ) -> None:
        del userdata
        self._loop.call_soon_threadsafe(self._register, client, sock)

    def _register(self, client: PahoClient, sock: socket.socket) -> None:
        if sock.fileno() < 0 or not client.want_write():
            return
        try:
            self._loop.add_writer(sock.fileno(), client.loop_write)
        except RuntimeError:
            # uvloop has closed its side of a socket that was reset; paho learns it by reading.
            client.loop_read()

    def _acknowledge(self, number: int, qos: int) -> None:
        self._client.ack(number, qos)


class Connection:
    """A connection that stands."""

    def __init__(self, client: _Client, version: Version) -> None:
        self._client = client
        self.version = version
        self.limits = client.limits

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1.

        Raises BrokerLost when the connection ends or the broker refuses.
        """
        if not filters:
            return
        with _broker_errors():
            codes = await self._client.subscribe([(each, 1) for each in filters])
        refused = [
            name
            for name, code in zip(filters, codes, strict=False)
            if _number(code) >= _FIRST_FAILURE
        ]
        if refused:
            raise BrokerLost(f"the broker refuses the subscription to {', '.join(refused)}")

    async def publish(self, message: Outgoing) -> str | None:
        """Publish; with QoS 1, return when the broker has the message, or why it refused it.

        Calls that are made in some order are sent in that order. Raises BrokerLost, also for what
        the broker has to object to, which is not sent.
        """
        if objection := self.limits.objection(message):
            raise BrokerLost(objection)
        message = self.limits.fit(message)
        properties = _properties(message) if self.version == "5" else None
        with _broker_errors():
            return await self._client.put(message, properties)

    def look(self) -> None:
        """Look at the socket now, so that other waits end when it was reset.

        libuv takes a reset socket out of its polling and uvloop tells no reader of it, so that
        aiomqtt would notice only when it has to send a heartbeat.
        """
        self._client._client.loop_read()

    async def watch(self) -> NoReturn:
        """Look every now and then, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    async def messages(self) -> AsyncGenerator[Incoming, None]:
        """What comes in, until the connection ends.

        Raises BrokerLost.
        """
        inbox, end = self._client._inbox, self._client._disconnected
        end.add_done_callback(lambda _: inbox.wake())
        while True:
            while (message := inbox.take()) is not None:
                yield message
                # Others have their turns, too, among them the reading itself.
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
    """Connect, and disconnect on the way out, so that the will is sent only when we are torn away.

    With `session_s` the broker keeps our subscriptions, and for them what comes with QoS 1, while
    we are away (MQTT 5: so many seconds); each message is then ours to acknowledge. Without
    `version`, MQTT 5 is tried and then 3.1.1. What comes waits in `inbox`. Raises BrokerLost.
    """
    inbox = Inbox() if inbox is None else inbox
    inbox.clear()
    dial = functools.partial(_dial, address, client_id=client_id, session_s=session_s, inbox=inbox)
    try:
        client, spoken = await dial(will=will, version=version)
    except BrokerLost as error:
        if will is None or (lesser := _without(will, error.reason_code)) == will:
            raise
        inbox.clear()
        client, spoken = await dial(will=lesser, version=version)
    try:
        yield Connection(client, spoken)
    finally:
        with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_TIMEOUT_S):
                await client.__aexit__(None, None, None)
        _abandon(client)


async def _dial(
    address: BrokerAddress,
    *,
    client_id: str,
    will: Outgoing | None,
    version: Version | None,
    session_s: int,
    inbox: Inbox,
) -> tuple[_Client, Version]:
    enter = functools.partial(_enter, address, client_id, will, session_s=session_s, inbox=inbox)
    if version is None:
        try:
            return await enter("5", _PROBE_TIMEOUT_S), "5"
        except aiomqtt.MqttError as error:
            if not _may_be_older(error):
                raise _no_connection(address, error) from error
            logger.info("broker does not answer MQTT 5, trying 3.1.1: broker=%s", address)
    spoken = version or "3.1.1"
    try:
        return await enter(spoken, _REPLY_TIMEOUT_S), spoken
    except aiomqtt.MqttError as error:
        raise _no_connection(address, error) from error


def _no_connection(address: BrokerAddress, error: aiomqtt.MqttError) -> BrokerLost:
    return BrokerLost(f"no connection to {address}: {error}", _reason_code(error))


def _without(will: Outgoing, reason_code: int | None) -> Outgoing:
    """The will, without what a broker refused it for."""
    return replace(
        will,
        retain=will.retain and reason_code != _NO_RETAINED,
        qos=0 if reason_code == _NO_QOS else will.qos,
    )


def _is_wordless(error: aiomqtt.MqttError) -> bool:
    """Whether nobody there has said anything in MQTT."""
    return not isinstance(error, aiomqtt.MqttCodeError)


def _may_be_older(error: aiomqtt.MqttError) -> bool:
    """Whether the broker may know only MQTT 3.1.1: it says so, or it is silent."""
    if isinstance(error, aiomqtt.MqttCodeError):
        return _number(error.rc) in _UNSUPPORTED_VERSION
    return isinstance(error.__context__, TimeoutError)


async def _enter(
    address: BrokerAddress,
    client_id: str,
    will: Outgoing | None,
    version: Version,
    timeout_s: float,
    *,
    session_s: int,
    inbox: Inbox,
) -> _Client:
    is_kept = session_s > 0
    client = _Client(
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
        logger=_paho_logger,
    )
    client.read_into(inbox, version)
    client.pending_calls_threshold = _MAX_SENDERS
    # Otherwise paho acknowledges what it has read, whether anybody has written it down or not.
    client._client.manual_ack_set(is_kept)
    try:
        await client.__aenter__()
    except BaseException as error:
        is_cut = client._client.socket() is None
        _abandon(client)
        if is_cut and isinstance(error, aiomqtt.MqttError) and _is_wordless(error):
            hint = await other_way(address)
            if hint:
                raise BrokerLost(f"no connection to {address}: {error}; {hint}") from error
        raise
    client.timeout = _REPLY_TIMEOUT_S
    return client


def _abandon(client: aiomqtt.Client) -> None:
    """Let go of the socket.

    aiomqtt leaves a connection that got no answer open, with a task that keeps it alive, and has no
    public way to end it.
    """
    client._client.disconnect()


def _number(code: object) -> int:
    """A return code of 3.1.1 is a number, a reason code of MQTT 5 has one."""
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
    """What a broker gave for a reason; None where it gave none."""
    if not isinstance(error, aiomqtt.MqttCodeError):
        return None
    number = _number(error.rc)
    return number if number >= _FIRST_FAILURE else None


def _limits(properties: Properties | None) -> BrokerLimits:
    """What a broker said when it let us in; a broker of MQTT 3.1.1 says nothing."""
    given = {
        "max_packet_bytes": getattr(properties, "MaximumPacketSize", None),
        "max_qos": getattr(properties, "MaximumQoS", None),
        "keeps_retained": getattr(properties, "RetainAvailable", None),
        "max_in_flight": getattr(properties, "ReceiveMaximum", None),
    }
    return BrokerLimits(**{name: value for name, value in given.items() if value is not None})


def _will(will: Outgoing | None, version: Version) -> aiomqtt.Will | None:
    if will is None:
        return None
    properties = _properties(will, PacketTypes.WILLMESSAGE) if version == "5" else None
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


def _connect_properties(session_s: int) -> Properties:
    """The broker keeps larger packets to itself, and our session, where we want one, so long."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_PACKET_BYTES
    if session_s:
        properties.SessionExpiryInterval = session_s
    return properties


def _properties(message: Outgoing, packet: int = PacketTypes.PUBLISH) -> Properties | None:
    """The MQTT 5 properties of a message; making them costs more than sending a small message."""
    given = {
        "CorrelationData": message.correlation,
        "ResponseTopic": message.response_topic,
        "ContentType": message.content_type,
        "MessageExpiryInterval": message.expiry_s,
        "UserProperty": message.user or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return _made_properties(packet, tuple(given.items())) if given else None


@functools.lru_cache(maxsize=256)
def _made_properties(packet: int, given: tuple[tuple[str, object], ...]) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in given:
        setattr(properties, name, list(value) if isinstance(value, tuple) else value)
    return properties


def _incoming(message: MQTTMessage, acknowledge: Callable[[], None]) -> Incoming:
    properties = message.properties
    users = getattr(properties, "UserProperty", None) or []
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        retain=message.retain,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expiry_s=getattr(properties, "MessageExpiryInterval", None),
        content_type=getattr(properties, "ContentType", None),
        client=next((value for name, value in users if name == "client"), None),
        acknowledge=acknowledge,
    )
