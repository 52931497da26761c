"""The address of an MQTT broker, read from a URL, with credentials and TLS settings."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from edgecosine.discovery.static import HOST_ALLOWED, is_host
from edgecosine.errors import BrokerLost, ConfigError

KEEPALIVE_S = 15
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_ALLOWED = "mqtt://[user@]host[:port], or mqtts://… for TLS"
_PASSWORD = re.compile(r"\A((?:[a-z]+://)?+[^:@/]*):.+@", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's address and our credentials.

    ca_file           trusted certificates; None: the system's
    certificate_file  our certificate with its key, for brokers that require one
    keepalive_s       the broker declares us offline after 1.5 times this without a packet
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_encrypted: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    keepalive_s: int = KEEPALIVE_S

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        username: str = "",
        password: str = "",
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        keepalive_s: int = KEEPALIVE_S,
    ) -> Self:
        """Read `mqtt://[user:password@]host[:port]`, or `mqtts://` for TLS.

        `username` and `password` override those in the URL. Raises ConfigError, whose message
        never contains the password.
        """
        shown = without_password(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("broker", shown, _ALLOWED) from error
        is_plain_url = parts.path in ("", "/") and not parts.query and not parts.fragment
        if parts.scheme not in _PORTS or not parts.hostname or not is_plain_url:
            raise ConfigError("broker", shown, _ALLOWED)
        if port == 0:
            raise ConfigError("broker", shown, "a port from 1 to 65535, or none for the usual one")
        host = unquote(parts.hostname)  # the zone of an IPv6 address follows %25 there
        if not is_host(host):
            raise ConfigError("broker", shown, HOST_ALLOWED)
        is_encrypted = parts.scheme == "mqtts"
        if not is_encrypted and (ca_file or certificate_file):
            raise ConfigError("broker", shown, "mqtts:// where certificates are given")
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            username=username or (unquote(parts.username) if parts.username else None),
            password=password or (unquote(parts.password) if parts.password else None),
            is_encrypted=is_encrypted,
            ca_file=ca_file,
            certificate_file=certificate_file,
            keepalive_s=keepalive_s,
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """TLS settings from the current content of the files; None for plain text.

        Raises BrokerLost when a file cannot be used, since it may be present at the next attempt.
        """
        if not self.is_encrypted:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file)
        except OSError as error:
            files = ", ".join(str(f) for f in (self.ca_file, self.certificate_file) if f)
            raise BrokerLost(f"the certificates in {files} cannot be used: {error}") from error
        return context


def holds_password(url: str) -> bool:
    """Whether a URL, even a malformed one, contains a password."""
    return _PASSWORD.match(url) is not None


def without_password(url: str, mark: str = ":…") -> str:
    """The URL with `mark` in place of a password, for display."""
    return _PASSWORD.sub(rf"\1{mark}@", url)
