"""MQTT publications as frozen values, with the fields that are used here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
MAX_PAYLOAD_BYTES = 960 << 10
"""Below the packet limit of the embedded broker, 1 MiB, over which it ends the connection."""


def nothing() -> None:
    """Acknowledge nothing: the default."""


Qos = Literal[0, 1]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received publication. All but the first three fields are MQTT 5 properties."""

    topic: str
    payload: bytes
    retain: bool = False
    """Whether the broker stored it before we subscribed."""
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    """Seconds until it expires."""
    content_type: str | None = None
    client: str | None = None
    """The user property `client`: the sender's client id."""
    acknowledge: Callable[[], None] = field(default=nothing, compare=False, repr=False)
    """Acknowledge it to a broker that keeps our session and would otherwise send it again."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A publication to send. MQTT 3.1.1 carries the first four fields, MQTT 5 all."""

    topic: str
    payload: bytes
    qos: Qos = 1
    retain: bool = False
    correlation: bytes | None = None
    response_topic: str | None = None
    content_type: str | None = None
    expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes in memory; a client may choose long correlation data and a long topic."""
        return len(self.payload) + len(self.correlation or b"") + len(self.topic)
