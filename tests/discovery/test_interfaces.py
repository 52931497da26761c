"""Which addresses are announced, and in which order they are tried."""

from __future__ import annotations

from edgecosine.discovery.interfaces import (
    Interface,
    addresses_to_announce,
    by_reach,
    interfaces,
    is_everywhere,
)

OWN = [
    Interface("lo", ("127.0.0.1", "::1")),
    Interface("eth0", ("fe80::5", "fd00::5", "192.168.1.5")),
]


def test_unspecified_host_announces_all_but_loopback() -> None:
    for host in ("", "*", "0.0.0.0", "::"):  # noqa: S104
        assert addresses_to_announce([host], OWN) == ["192.168.1.5", "fd00::5", "fe80::5"]


def test_loopback_is_announced_without_a_network() -> None:
    assert addresses_to_announce([""], OWN[:1]) == ["127.0.0.1", "::1"]
    assert addresses_to_announce(["127.0.0.1"], OWN) == ["127.0.0.1"]


def test_given_addresses_are_announced() -> None:
    assert addresses_to_announce(["fd00::5", "127.0.0.1"], OWN) == ["fd00::5"]


def test_unspecified_host_covers_all_addresses() -> None:
    assert all(map(is_everywhere, ([""], ["::"], ["192.168.1.5", "0.0.0.0"])))  # noqa: S104
    assert not is_everywhere(["127.0.0.1", "fd00::5"])


def test_most_widely_reachable_addresses_come_first() -> None:
    mixed = ["::1", "fe80::1%2", "fd00::1", "127.0.0.1", "10.0.0.1", "fd00::1", "169.254.0.1"]
    assert by_reach(mixed) == [
        "10.0.0.1", "fd00::1", "169.254.0.1", "fe80::1%2", "127.0.0.1", "::1",
    ]  # fmt: skip


def test_this_machine_has_a_loopback_interface() -> None:
    assert any("127.0.0.1" in interface.addresses for interface in interfaces())
