"""Reads the messages of one link, within the limits of its peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter  # uvloop's own clock counts whole milliseconds

from edgecosine.errors import PeerFlooded, RemoteProtocolError
from edgecosine.node.links.link_socket import LinkSocket
from edgecosine.node.links.peer_budget import LoopShare, PeerBudget
from edgecosine.protocol.wire.codec import decode
from edgecosine.protocol.wire.framing import FrameBuffer
from edgecosine.protocol.wire.messages import AnyMessage


class LinkReader:
    """Passes received messages to `process`, until it is stopped.

    `fail` is called for a message that breaks the protocol, and for one too many (PeerFlooded).
    `process` may raise RemoteProtocolError to the same effect.
    """

    def __init__(
        self,
        socket: LinkSocket,
        *,
        process: Callable[[AnyMessage], None],
        fail: Callable[[RemoteProtocolError], None],
    ) -> None:
        self._socket, self._process, self._fail = socket, process, fail
        self.budget = PeerBudget()
        self._loop_share = LoopShare()
        self._buffer = FrameBuffer()
        self._resuming: asyncio.TimerHandle | None = None
        """Set while the socket is left unread."""
        self._is_stopped = False

    def limit_frames(self, max_frame_bytes: int) -> None:
        """Set the length of the longest frame that the peer may send from now on."""
        self._buffer.max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes) -> None:
        """Process the messages that these bytes complete."""
        self._buffer.feed(data)
        self._read()

    def stop(self) -> None:
        """Process no further message; bytes that arrive from now on are dropped."""
        self._is_stopped = True
        self._buffer.clear()
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
            # Unread bytes would reset the socket before the last message is sent.
            self._socket.resume_reading()

    def _read(self) -> None:
        """Process the messages that have arrived, until they have taken too much time."""
        began_s = perf_counter()
        try:
            while not self._is_stopped and self._resuming is None:
                payload = self._buffer.next_frame()
                if payload is None:
                    return
                if not self.budget.spend():
                    raise PeerFlooded("the peer sent more messages than were requested of it")
                self._process(decode(payload))
                ended_s = perf_counter()
                pause_s = self._loop_share.spend(ended_s - began_s, ended_s)
                began_s = ended_s
                if pause_s and not self._is_stopped:
                    self._socket.pause_reading()
                    loop = asyncio.get_running_loop()
                    self._resuming = loop.call_later(pause_s, self._resume)
        except RemoteProtocolError as error:
            self._fail(error)

    def _resume(self) -> None:
        self._resuming = None
        self._socket.resume_reading()
        self._read()
