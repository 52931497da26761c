"""What goes over MQTT, as frozen values: the fields of a publication that we use, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
MAX_PAYLOAD_BYTES = 960 << 10
"""Below the packet limit of the embedded broker (1 MiB), which hangs up on more."""


def nothing() -> None:
    """Nobody waits for an acknowledgement."""


Qos = Literal[0, 1]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A publication that reached us. All but the first three fields are MQTT 5 properties."""

    topic: str
    payload: bytes
    retain: bool = False
    """True only when the broker had stored it before we subscribed."""
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    """Seconds that are left."""
    content_type: str | None = None
    client: str | None = None
    """The user property `client`: how the asker calls itself."""
    acknowledge: Callable[[], None] = field(default=nothing, compare=False, repr=False)
    """Tell a broker that keeps our session that it need not send this again."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A publication of ours. MQTT 3.1.1 carries the first four fields, MQTT 5 all."""

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
        """What it takes to keep: an asker may choose long correlation data and a long topic."""
        return len(self.payload) + len(self.correlation or b"") + len(self.topic)
