"""Writes the packets of one MQTT connection: those of one iteration of the event loop together.

aiomqtt waits for each message until it is written, and registers the socket for writing before, by
its number, when the socket may be closed and the number may belong to another one. Here the socket
is registered only if it takes no more bytes, and a message of QoS 0 does not wait for that.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any, Final

from edgecosine.mqtt.packets import PUBLISH

_MAX_TOGETHER_BYTES: Final = 256 << 10
"""Of messages of QoS 0 that wait for the end of an iteration."""

_COMMAND: Final = PUBLISH << 4


class SocketWriter:
    """Writes for `client`, paho's, whose queue holds all packets in order."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._is_blocked = False
        """Whether the socket takes no more bytes, and is watched."""

    def put(self, packet: bytes) -> bool:
        """Send a packet of QoS 0 at the end of this iteration; returns False, without effect, where
        it must be waited for."""
        if self._is_blocked or self._client.socket() is None:
            return False
        waiting = self._client._out_packet
        last = waiting[-1] if waiting else None
        if last is None or last["command"] != _COMMAND or last["info"] is not None or last["pos"]:
            # paho takes it for one of QoS 1, whose writing has no callback.
            self._client._packet_queue(_COMMAND, bytearray(packet), 0, 1)
            return True
        if last["to_process"] > _MAX_TOGETHER_BYTES:
            return False
        last["packet"] += packet
        last["to_process"] += len(packet)
        return True

    def wake(self, sock: socket.socket) -> None:
        """paho has queued packets, maybe in the thread in which it connects."""
        is_loop = threading.get_ident() == self._thread
        schedule = self._loop.call_soon if is_loop else self._loop.call_soon_threadsafe
        schedule(self._write, sock)

    def unwatch(self, sock: socket.socket) -> None:
        """paho has written everything, or closes the socket."""
        if self._is_blocked:
            self._is_blocked = False
            self._loop.remove_writer(sock.fileno())

    def _write(self, sock: socket.socket) -> None:
        client = self._client
        if sock.fileno() >= 0 and client.want_write():
            client.loop_write()
        if sock.fileno() < 0 or not client.want_write():
            return
        self._is_blocked = True
        try:
            self._loop.add_writer(sock.fileno(), client.loop_write)
        except RuntimeError:
            # uvloop has closed its side of a socket that was reset; paho notices when it reads.
            client.loop_read()
