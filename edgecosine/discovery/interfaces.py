"""Which numeric addresses this machine has, and which of them to tell the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ifaddr

_STATES: Final = Path("/sys/class/net")
"""On Linux: a folder for each interface."""
_UNSPECIFIED: Final = ("", "*", "0.0.0.0", "::")  # noqa: S104 -- to be told apart


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, its numeric addresses, and where the system tells, whether it is up."""

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
    """Whether a node that listens on these hosts is reached at every address of its machine, those
    to come included."""
    return any(host in _UNSPECIFIED for host in listening)


def addresses_to_announce(listening: Sequence[str], own: Iterable[Interface]) -> list[str]:
    """Numeric addresses at which others reach a node that listens on these hosts.

    Loopback is told only when there is nothing else, for it means somebody else elsewhere.
    """
    announced = [host for host in listening if host not in _UNSPECIFIED]
    if len(announced) < len(listening):
        announced += [address for interface in own for address in interface.addresses]
    ordered = by_reach(announced)
    far = [address for address in ordered if not ipaddress.ip_address(_bare(address)).is_loopback]
    return far or ordered


def by_reach(addresses: Iterable[str]) -> list[str]:
    """Distinct addresses, those first that are most likely to be reached from anywhere."""
    return sorted(dict.fromkeys(addresses), key=_distance)


def _distance(address: str) -> tuple[bool, bool, bool]:
    ip = ipaddress.ip_address(_bare(address))
    return ip.is_loopback, ip.is_link_local, ip.version == 6


def _bare(address: str) -> str:
    return address.partition("%")[0]
