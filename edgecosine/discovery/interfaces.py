"""The numeric addresses of this machine, and those to announce."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ifaddr

_STATES: Final = Path("/sys/class/net")
"""On Linux, a directory for each interface."""
_UNSPECIFIED: Final = ("", "*", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, its numeric addresses, and its `operstate` where known."""

    name: str
    addresses: tuple[str, ...]
    state: str = ""


def interfaces() -> list[Interface]:
    """The interfaces of this machine that have an address."""
    found = []
    for adapter in ifaddr.get_adapters():
        texts = tuple(ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips)
        if texts:
            found.append(Interface(adapter.nice_name, texts, _state(adapter.nice_name)))
    return found


def _state(name: str) -> str:
    try:
        return (_STATES / name / "operstate").read_text().strip()
    except (OSError, ValueError):
        return ""


def is_everywhere(listening: Iterable[str]) -> bool:
    """Whether the hosts include an unspecified address, which covers all present and future
    addresses of the machine."""
    return any(host in _UNSPECIFIED for host in listening)


def addresses_to_announce(listening: Sequence[str], own: Iterable[Interface]) -> list[str]:
    """Numeric addresses at which other nodes reach a node that listens on these hosts.

    Loopback is included only when there is no other address.
    """
    announced = [host for host in listening if host not in _UNSPECIFIED]
    if len(announced) < len(listening):
        announced += [address for interface in own for address in interface.addresses]
    ordered = by_reach(announced)
    far = [address for address in ordered if not ipaddress.ip_address(_bare(address)).is_loopback]
    return far or ordered


def by_reach(addresses: Iterable[str]) -> list[str]:
    """Distinct addresses, the most widely reachable first."""
    return sorted(dict.fromkeys(addresses), key=_distance)


def _distance(address: str) -> tuple[bool, bool, bool]:
    ip = ipaddress.ip_address(_bare(address))
    return ip.is_loopback, ip.is_link_local, ip.version == 6


def _bare(address: str) -> str:
    return address.partition("%")[0]
