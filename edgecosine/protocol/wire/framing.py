"""Frames: a length in four big-endian bytes, then the payload.

A frame over the limit is refused by its length, before its payload is buffered, so a buffer holds
at most one frame and the bytes received with its end.
"""

from __future__ import annotations

from typing import Final

from edgecosine.errors import LocalProtocolError, RemoteProtocolError

HEADER_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 2 << 20
MAX_GREETING_BYTES: Final = 256 << 10
"""Limit of a frame until the peer is accepted."""
MAX_ANSWER_BYTES: Final = 16 << 10
"""Limit of a frame from a drafter, which sends answers only."""
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""First bytes of a TLS alert and handshake; as lengths they are far over the limit."""


def frame(payload: bytes) -> bytes:
    """The payload with its length before it.

    Raises LocalProtocolError when the frame exceeds the limit of all peers.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"a message of {len(payload)} bytes exceeds the frame cap of {MAX_FRAME_BYTES}"
        )
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameBuffer:
    """Splits a stream, in pieces of any size, into frames.

    `max_frame_bytes` may be raised between two frames.
    """

    def __init__(self, max_frame_bytes: int = MAX_GREETING_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._refusal: str | None = None

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append received bytes; call `next_frame` until it returns None before the next call."""
        if self._refusal is None:
            self._buffer += data

    def clear(self) -> None:
        """Drop buffered bytes."""
        self._buffer.clear()

    def next_frame(self) -> bytes | None:
        """The next whole frame without its header, or None until more bytes have come.

        Raises RemoteProtocolError, now and at every later call, when a frame exceeds the limit.
        """
        if self._refusal is not None:
            raise RemoteProtocolError(self._refusal)
        if len(self._buffer) < HEADER_BYTES:
            return None
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if size > self.max_frame_bytes:
            self._refusal = self._why_not(size)
            self._buffer.clear()
            raise RemoteProtocolError(self._refusal)
        end = HEADER_BYTES + size
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER_BYTES:end])
        del self._buffer[:end]
        return payload

    def _why_not(self, size: int) -> str:
        if self._buffer.startswith(_TLS_RECORDS):
            return (
                "the peer speaks TLS, this node plain text: give this node credentials by "
                "`edgecosine cluster join`"
            )
        return f"the peer announced a frame of {size} bytes; the cap is {self.max_frame_bytes}"
