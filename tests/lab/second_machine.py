"""A program for the lab's hosts: `second_machine.py echo|count|listen|flood …`; prints JSON."""

from __future__ import annotations

import json
import socket
import struct
import sys

GROUP = "239.77.77.77"
BUFFER_BYTES = 8 << 20
SO_RCVBUFFORCE = 33


def notify(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def echo() -> None:
    """A TCP server that echoes its input, one connection after the other."""
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 -- inside the lab
        notify(server.getsockname()[1])
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)


def count() -> None:
    """Count the datagrams that arrive before the one that marks the end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        own.bind(("0.0.0.0", 0))  # noqa: S104 -- inside the lab
        notify(own.getsockname()[1])
        counted = 0
        while own.recv(100) != b"end":
            counted += 1
        notify(counted)


def flood(host: str, port: str, times: str) -> None:
    """Send datagrams, then mark the end until this process is ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        for _ in range(int(times)):
            own.sendto(b"x" * 50, (host, int(port)))
        while True:
            own.sendto(b"end", (host, int(port)))


def listen(address: str) -> None:
    """Join a multicast group and print the first message."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind((GROUP, 7777))
        join = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(address))
        own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
        notify("ready")
        notify(own.recv(100).decode())


def send(address: str, text: str) -> None:
    """Send one message to a multicast group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        own.sendto(text.encode(), (GROUP, 7777))


if __name__ == "__main__":
    {"echo": echo, "count": count, "flood": flood, "listen": listen, "send": send}[sys.argv[1]](
        *sys.argv[2:]
    )
