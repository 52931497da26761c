"""Where an MQTT broker is, read from its URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from edgecosine.errors import ConfigError

_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and how we prove who we are."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_encrypted: bool = False

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `mqtt://[user:password@]host[:port]`, or `mqtts://` for TLS.

        Raises ConfigError, which does not repeat the password.
        """
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        allowed = "mqtt://[user:password@]host[:port] or mqtts://…"
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError("broker", shown, allowed) from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError("broker", shown, allowed)
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            is_encrypted=parts.scheme == "mqtts",
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
