"""Parses addresses in settings: HOST:PORT, or [IPV6]:PORT."""

from __future__ import annotations

import encodings.idna  # noqa: F401 -- loaded now, since a later look-up may lack the rights
import re

from edgecosine.discovery.peer import MAX_PORT, Address
from edgecosine.errors import ConfigError

_ALLOWED = "HOST:PORT or [IPV6]:PORT with a port from 1 to 65535"
_PATTERN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]{1,253})):(?P<port>[0-9]{1,5})",
    re.ASCII,
)
HOST_ALLOWED = "a host name whose parts have 1 to 63 letters each, or a numeric address"


def is_host(name: str) -> bool:
    """Whether a host name can be encoded for DNS; Python's look-up raises for others."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return bool(name) and name.isprintable() and " " not in name


def parse_address(text: str, *, key: str = "peer") -> Address:
    """Parse the address in the setting `key`.

    Raises ConfigError when it is invalid.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or not 1 <= int(match["port"]) <= MAX_PORT:
        raise ConfigError(key, text, _ALLOWED)
    if match["host"] and not is_host(match["host"]):
        raise ConfigError(key, text, HOST_ALLOWED)
    return Address(match["v6"] or match["host"], int(match["port"]))


def parse_listen(text: str, *, key: str) -> Address:
    """Parse the address to listen at in the setting `key`; an empty host is all interfaces.

    Raises ConfigError when it is invalid.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(key, text, "HOST:PORT, :PORT for all interfaces, port 0 for any")
    return Address(host.strip("[]"), int(port))
