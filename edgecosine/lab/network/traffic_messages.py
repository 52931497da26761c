"""What the process that carries the lab's traffic can be told, one JSON object a line each way.

Every order is answered by one line: a JSON object, with `error` in it when it could not be done.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgecosine.lab.network.conditions import NetworkConditions

MAX_LINE_BYTES = 1 << 16


class Plug(msgspec.Struct, frozen=True, tag=True):
    """Take a host's cable. `interfaces` are its ends, the hub's own first; none under a relay."""

    host: str
    weather: NetworkConditions
    interfaces: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, tag=True):
    """New weather on a host's cable, from now on."""

    host: str
    weather: NetworkConditions
    is_cut: bool


class Open(msgspec.Struct, frozen=True, tag=True):
    """Relay TCP from a new port of loopback, or from the socket `descriptor`, to an address.

    `source` and `destination` are the hosts whose cables it crosses. Answered with `port`.
    """

    address: str
    port: int
    source: str = ""
    destination: str = ""
    descriptor: int = -1


class Report(msgspec.Struct, frozen=True, tag=True):
    """Answered with counts by host, and what the work cost."""


TrafficOrder = Plug | Change | Open | Report

_DECODER = msgspec.json.Decoder(TrafficOrder)


def read_order(line: bytes) -> TrafficOrder:
    """Decode one line of the parent.

    Raises msgspec.DecodeError.
    """
    order: TrafficOrder = _DECODER.decode(line)
    return order


def write_reply(reply: dict[str, Any]) -> bytes:
    """One line."""
    return msgspec.json.encode(reply) + b"\n"
