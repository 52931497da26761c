"""Orders to the process that carries the lab's traffic, one JSON object per line each way.

Every order is answered by one line: a JSON object, with `error` in it when the order failed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgecosine.lab.network.conditions import NetworkConditions

MAX_LINE_BYTES = 1 << 16


class Plug(msgspec.Struct, frozen=True, tag=True):
    """Add a host's cable. `interfaces` are its ends, the hub's first; a relay has none."""

    host: str
    conditions: NetworkConditions
    interfaces: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, tag=True):
    """Change the conditions of a host's cable."""

    host: str
    conditions: NetworkConditions
    is_cut: bool


class Open(msgspec.Struct, frozen=True, tag=True):
    """Relay TCP from a new port of loopback, or from the socket `descriptor`, to an address.

    `source` and `destination` are the hosts whose cables it crosses. The reply has the `port`.
    """

    address: str
    port: int
    source: str = ""
    destination: str = ""
    descriptor: int = -1


class Report(msgspec.Struct, frozen=True, tag=True):
    """Request counts by host and the processor time that was used."""


TrafficOrder = Plug | Change | Open | Report

_DECODER = msgspec.json.Decoder(TrafficOrder)


def read_order(line: bytes) -> TrafficOrder:
    """Decode one line of the parent.

    Raises msgspec.DecodeError.
    """
    order: TrafficOrder = _DECODER.decode(line)
    return order


def write_reply(reply: dict[str, Any]) -> bytes:
    """A reply as one line."""
    return msgspec.json.encode(reply) + b"\n"
