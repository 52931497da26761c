"""Addresses that an operator writes down: HOST:PORT, or [IPV6]:PORT."""

from __future__ import annotations

import re

from edgecosine.discovery.peer import MAX_PORT, Address
from edgecosine.errors import ConfigError

_ALLOWED = "HOST:PORT or [IPV6]:PORT with a port from 1 to 65535"
_PATTERN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]{1,253})):(?P<port>[0-9]{1,5})",
    re.ASCII,
)


def parse_address(text: str, *, key: str = "peer") -> Address:
    """The address that the setting `key` names.

    Raises ConfigError when the text is no address.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or not 1 <= int(match["port"]) <= MAX_PORT:
        raise ConfigError(key, text, _ALLOWED)
    return Address(match["v6"] or match["host"], int(match["port"]))
