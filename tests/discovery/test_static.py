"""Addresses as operators write them."""

from __future__ import annotations

import pytest

from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_address
from edgecosine.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:7000", Address("10.0.0.5", 7000)),
        (" pi-4.lan:1 ", Address("pi-4.lan", 1)),
        ("[fd00::5]:65535", Address("fd00::5", 65535)),
        ("[fe80::1%eth0]:7000", Address("fe80::1%eth0", 7000)),
        ("[::ffff:10.0.0.1]:7000", Address("::ffff:10.0.0.1", 7000)),
    ],
)
def test_address_round_trips(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":7000", "host:0", "host:65536", "fd00::5:7000", "[fd00::5]", "a b:1",
     "host:70a", "[host]:7000", "http://host:7000", "host:7000/x", "höst:1", "host:٣"],
)  # fmt: skip
def test_invalid_address_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text, key="listen")
    assert (caught.value.key, caught.value.value) == ("listen", text)
    assert "HOST:PORT or [IPV6]:PORT" in str(caught.value)
