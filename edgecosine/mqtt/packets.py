"""Reads MQTT control packets from a stream, and drops unwanted messages before they are decoded.
Writes messages of QoS 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgecosine.mqtt.inbox import Inbox
from edgecosine.protocol.api.mqtt_message import Outgoing

PUBLISH: Final = 3
_CHUNK_BYTES: Final = 256 << 10
_SMALL_CHUNK_BYTES: Final = 64 << 10
_MANY: Final = 32
"""Packets in a chunk from which on chunks are small, and unwanted messages in a chunk after which
the rest is dropped without a look at its sender."""
_HIGH: Final = 0x80
_MAX_LENGTH_BYTES: Final = 4


class Packets:
    """Cuts a stream, in pieces of any size, into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Append bytes of the stream."""
        del self._buffer[: self._position]
        self._position = 0
        self._buffer += data

    def next(self) -> tuple[int, bytearray] | None:
        """First byte and body of the next whole packet; None until more bytes have come.

        Raises ValueError for a length that MQTT forbids.
        """
        buffer, start = self._buffer, self._position
        num_bytes = len(buffer)
        if num_bytes < start + 2:
            return None
        length, body = buffer[start + 1], start + 2
        if length & _HIGH:
            found = _length(buffer, start + 1)
            if found is None:
                return None
            length, body = found
        end = body + length
        if num_bytes < end:
            return None
        self._position = end
        return buffer[start], buffer[body:end]


class PacketReader:
    """Reads packets from the chunks of a stream, without the messages of QoS 0 for which the inbox
    has no room."""

    def __init__(self, inbox: Inbox, *, has_properties: bool) -> None:
        self._inbox, self._has_properties = inbox, has_properties
        self._packets = Packets()
        self._num_read = self._num_unwanted = 0

    @property
    def chunk_bytes(self) -> int:
        """Bytes to read next: fewer while many small messages come, so that other tasks run."""
        return _CHUNK_BYTES if self._num_read < _MANY else _SMALL_CHUNK_BYTES

    def read(self, chunk: bytes) -> Iterator[tuple[int, bytearray]]:
        """First byte and body of each whole packet that is wanted.

        Raises ValueError for a length that MQTT forbids.
        """
        self._packets.feed(chunk)
        self._num_read = self._num_unwanted = 0
        while (packet := self._packets.next()) is not None:
            self._num_read += 1
            if self._is_wanted(*packet):
                yield packet
            else:
                self._num_unwanted += 1
                self._inbox.leave_out()

    def _is_wanted(self, command: int, body: bytearray) -> bool:
        if not is_qos_0(command) or self._inbox.has_room(len(body)):
            return True
        if self._num_unwanted >= _MANY:
            return False
        message = peek(body, has_properties=self._has_properties)
        return message is None or self._inbox.wants(*message)


def is_qos_0(command: int) -> bool:
    """Whether the packet is a PUBLISH of QoS 0."""
    return command >> 4 == PUBLISH and not command & 0x06


def peek(body: bytearray, *, has_properties: bool) -> tuple[str, bytearray] | None:
    """Topic and payload of a message of QoS 0; None when it has properties, or is malformed."""
    end = 2 + int.from_bytes(body[:2], "big")
    if has_properties:
        if body[end : end + 1] != b"\0":
            return None
        return body[2:end].decode(errors="replace"), body[end + 1 :]
    return body[2:end].decode(errors="replace"), body[end:]


def message_of_qos_0(message: Outgoing, properties: bytes) -> bytes:
    """The packet of a message; `properties` with their length, nothing in MQTT 3.1.1."""
    topic, payload = message.topic.encode(), message.payload
    length = _packed_length(2 + len(topic) + len(properties) + len(payload))
    start = bytes((PUBLISH << 4 | message.retain,))
    return b"".join((start, length, len(topic).to_bytes(2, "big"), topic, properties, payload))


def _packed_length(value: int) -> bytes:
    packed = bytearray()
    while value >= _HIGH:
        packed.append(value & ~_HIGH & 0xFF | _HIGH)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def _length(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """The length encoded at `position`, and the position behind it; None if it is incomplete."""
    value = 0
    for number, byte in enumerate(buffer[position : position + _MAX_LENGTH_BYTES]):
        value |= (byte & ~_HIGH) << 7 * number
        if not byte & _HIGH:
            return value, position + number + 1
    if len(buffer) >= position + _MAX_LENGTH_BYTES:
        raise ValueError("a packet's length has more than four bytes")
    return None
