"""MQTT control packets out of a stream, and whose message a packet carries before it is decoded."""

from __future__ import annotations

from typing import Final

PUBLISH: Final = 3
_HIGH: Final = 0x80
_MAX_LENGTH_BYTES: Final = 4


class Packets:
    """Cuts a stream, in whatever pieces it comes, into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Take what came in."""
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


def is_qos_0(command: int) -> bool:
    """Whether a packet is a message that nobody acknowledges."""
    return command >> 4 == PUBLISH and not command & 0x06


def peek(body: bytearray, *, has_properties: bool) -> tuple[str, bytearray] | None:
    """Topic and payload of a message of QoS 0; None when it has properties, or is malformed."""
    end = 2 + int.from_bytes(body[:2], "big")
    if has_properties:
        if body[end : end + 1] != b"\0":
            return None
        return body[2:end].decode(errors="replace"), body[end + 1 :]
    return body[2:end].decode(errors="replace"), body[end:]


def _length(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """The length that is written from `position` on, and where it ends; None if it is cut off."""
    value = 0
    for number, byte in enumerate(buffer[position : position + _MAX_LENGTH_BYTES]):
        value |= (byte & ~_HIGH) << 7 * number
        if not byte & _HIGH:
            return value, position + number + 1
    if len(buffer) >= position + _MAX_LENGTH_BYTES:
        raise ValueError("a packet's length has more than four bytes")
    return None
