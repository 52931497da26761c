"""The socket of one link: writes messages, pauses reading, and closes so that a refusal arrives.

Messages of one iteration of the event loop leave together: a write to a socket costs as much as the
rest of a message, and wakes the peer, which then answers them together as well.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final, cast

from edgecosine.protocol.wire.codec import encode
from edgecosine.protocol.wire.framing import frame
from edgecosine.protocol.wire.messages import AnyMessage

MAX_HELD_BYTES: Final = 64 << 10
"""Longer messages leave at once: a copy would cost more than a write."""


class LinkSocket:
    """Wraps the transport, which exists once the connection is made.

    gone  resolves when the socket is closed
    """

    def __init__(self, linger_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._linger_s = linger_s
        self._transport: asyncio.Transport | None = None
        self._dropping: asyncio.TimerHandle | None = None
        self._held = bytearray()
        """Frames that leave at the end of this iteration."""
        self.gone: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_connected(self) -> bool:
        """Whether a connection was made, even if it has ended."""
        return self._transport is not None

    @property
    def host(self) -> str:
        """Numeric address of the other end; `?` without a connection."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else "?"

    @property
    def is_within_machine(self) -> bool:
        """Whether both ends have one address."""
        own = self._transport.get_extra_info("sockname") if self._transport else None
        return own is not None and str(own[0]) == self.host

    @property
    def peercert(self) -> Mapping[str, Any] | None:
        """The peer's certificate in the format of the standard library; None on a plain link."""
        if self._transport is None:
            return None
        return cast(Mapping[str, Any] | None, self._transport.get_extra_info("peercert"))

    def connected(self, transport: asyncio.BaseTransport, max_unsent_bytes: int) -> None:
        """Use this transport from now on."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=max_unsent_bytes)

    def disconnected(self) -> None:
        """The transport has ended."""
        self._cancel_drop()
        self._held.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def write(self, message: AnyMessage) -> None:
        """Send a message."""
        assert self._transport is not None
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held += frame(encode(message))
        if len(self._held) > MAX_HELD_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held and self._transport is not None and not self._transport.is_closing():
            held, self._held = self._held, bytearray()
            self._transport.write(held)

    def pause_reading(self) -> None:
        """Leave incoming bytes in the kernel, which then slows the peer down."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read incoming bytes again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close at once; unsent bytes are lost."""
        self._cancel_drop()
        self._held.clear()
        if self._transport is not None:
            self._transport.abort()
        elif not self.gone.done():
            self.gone.set_result(None)

    def drop_later(self) -> None:
        """Close when the linger time is over."""
        self._cancel_drop()
        self._dropping = self._loop.call_later(self._linger_s, self.drop)

    def finish(self) -> None:
        """Send end-of-file now and close when the peer has closed, or the linger time is over.

        Closing a socket with unread bytes resets it, and the reset may overtake a refusal.
        """
        if self._transport is None or self._transport.is_closing():
            return
        self._flush()
        self.drop_later()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _cancel_drop(self) -> None:
        if self._dropping is not None:
            self._dropping.cancel()
