"""The hub: carries Ethernet frames between the lab's hosts under their network conditions.

`python -m edgecosine.lab.network.netns.hub SEED` runs in the namespace in which the cables end. It
reads orders from standard input, writes replies to standard output, and ends with the input. It has
one thread and one loop. It waits by `select`, which is exact to microseconds, while epoll is exact
to milliseconds, and runs at real-time priority, because a late hub would be a slow network.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import time
from typing import Any, assert_never

import msgspec

from edgecosine.lab.network.netns.switch import Switch
from edgecosine.lab.network.realtime_priority import be_punctual
from edgecosine.lab.network.traffic_messages import (
    MAX_LINE_BYTES,
    Change,
    Open,
    Plug,
    Report,
    TrafficOrder,
    read_order,
    write_reply,
)

MAX_FRAME_BYTES = 1 << 16
FRAMES_AT_ONCE = 64
_BUFFER_BYTES = 8 << 20

_SOL_PACKET = 263
_ALL_PROTOCOLS = 3
_PACKET_IGNORE_OUTGOING = 23
_SO_RCVBUFFORCE = 33
_SIOCETHTOOL = 0x8946
_OFFLOADS = (0x17, 0x1F, 0x24, 0x2C)
"""ETHTOOL_STXCSUM, STSO, SGSO, SGRO: with any of them, frames reach the hub incomplete."""


class Hub:
    """Sockets around a `Switch`."""

    def __init__(self, seed: int) -> None:
        self._switch = Switch(seed)
        self._sockets: dict[str, socket.socket] = {}
        self._port_of: dict[int, str] = {}
        self._num_sent = 0
        self._late_s = self._latest_s = 0.0

    def run(self) -> None:
        """Carry frames and execute orders until the input ends."""
        orders, partial = sys.stdin.fileno(), b""
        clock, switch = time.monotonic, self._switch
        while True:
            due = switch.next_due
            timeout_s = None if due is None else max(0.0, due - clock())
            readable, _, _ = select.select([orders, *self._port_of], (), (), timeout_s)
            for descriptor in readable:
                if descriptor == orders:
                    data = os.read(orders, MAX_LINE_BYTES)
                    if not data:
                        return
                    *lines, partial = (partial + data).split(b"\n")
                    for line in lines:
                        os.write(sys.stdout.fileno(), write_reply(self._execute(line)))
                else:
                    self._receive(self._port_of[descriptor])
            self._send_due()

    def _receive(self, port: str) -> None:
        receive, switch, clock = self._sockets[port].recv, self._switch, time.monotonic
        # No more frames, or an interface that is not up yet, which is reported once.
        with contextlib.suppress(OSError):
            for _ in range(FRAMES_AT_ONCE):
                switch.enter(port, receive(MAX_FRAME_BYTES), clock())

    def _send_due(self) -> None:
        clock = time.monotonic
        for port, frame, due in self._switch.leave(clock()):
            # A host that has ended, or whose buffers are full, loses the frame, as on a real cable.
            with contextlib.suppress(OSError):
                self._sockets[port].send(frame)
            late_s = clock() - due
            self._num_sent += 1
            self._late_s += late_s
            self._latest_s = max(self._latest_s, late_s)

    def _execute(self, line: bytes) -> dict[str, Any]:
        try:
            return self._carry_out(read_order(line))
        except (msgspec.MsgspecError, OSError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _carry_out(self, order: TrafficOrder) -> dict[str, Any]:
        match order:
            case Plug(host, conditions, interfaces):
                self._switch.plug(host, conditions)
                self._plug(host, interfaces)
                return {}
            case Change(host, conditions, is_cut):
                self._switch.cables[host].change(conditions, is_cut=is_cut)
                return {}
            case Report():
                return self._report()
            case Open():
                return {"error": "a hub carries frames, not connections"}
        assert_never(order)

    def _plug(self, host: str, interfaces: tuple[str, ...]) -> None:
        for interface in interfaces:
            _finish_frames(interface)
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        end.bind((interfaces[0], 0))
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._sockets[host] = end
        self._port_of[end.fileno()] = host

    def _report(self) -> dict[str, Any]:
        return {
            "hosts": {name: cable.counts() for name, cable in self._switch.cables.items()},
            "sent": self._num_sent,
            "dropped": self._switch.num_dropped,
            "cpu_s": time.process_time(),
            "late_mean_us": 1e6 * self._late_s / max(1, self._num_sent),
            "late_max_us": 1e6 * self._latest_s,
        }


def _finish_frames(interface: str) -> None:
    """Make the kernel complete frames before they leave: checksums, and no frame of 64 KiB."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in _OFFLOADS:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


if __name__ == "__main__":
    be_punctual()
    Hub(int(sys.argv[1])).run()
