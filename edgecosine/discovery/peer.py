"""A node's mDNS advert as a value, and its TXT record.

An advert is unauthenticated: it is validated and bounded here, and used only to dial the address,
where the node's Hello follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from edgecosine.protocol.wire.messages import Hello, Role
from edgecosine.protocol.wire.vocabulary import short_digest

MAX_PORT: Final = 65535
MAX_ADDRESSES: Final = 16
MAX_MODEL_BYTES: Final = 200
_MAX_NUMBER: Final = 1 << 53

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_DIGEST: Final = re.compile(r"(?:[0-9a-f]{16})?", re.ASCII)
_ROLES: Final[Mapping[str, Role]] = {
    "target": "target",
    "drafter": "drafter",
    "member": "member",
}


class Address(NamedTuple):
    """Where a node listens; `host` is a name or a numeric address, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HostileAdvert(ValueError):
    """An invalid TXT record; the message names the entry."""


@dataclass(frozen=True, slots=True)
class Advert:
    """A node's announcement of itself.

    vocabulary  short digest of its vocabulary; empty when it accepts any
    addresses   numeric, in the order of dials; empty in a node's own advert that stands for all
                addresses of its machine
    """

    node_id: str
    incarnation: int
    cluster: str
    protocol: int
    role: Role
    model: str
    vocabulary: str
    addresses: tuple[str, ...]
    port: int

    @property
    def endpoints(self) -> tuple[Address, ...]:
        """Where to dial it."""
        return tuple(Address(host, self.port) for host in self.addresses)


def advert_of(hello: Hello, addresses: Sequence[str], port: int) -> Advert:
    """The advert of the node whose greeting is `hello`."""
    return Advert(
        node_id=hello.node_id,
        incarnation=hello.incarnation,
        cluster=hello.cluster,
        protocol=hello.protocol,
        role=hello.role,
        model=hello.model,
        vocabulary=short_digest(hello.vocabulary),
        addresses=tuple(addresses[:MAX_ADDRESSES]),
        port=port,
    )


def to_txt(advert: Advert) -> dict[str, str]:
    """The entries of the TXT record; addresses and port have records of their own."""
    return {
        "protocol": str(advert.protocol),
        "cluster": advert.cluster,
        "id": advert.node_id,
        "life": str(advert.incarnation),
        "role": advert.role,
        "model": advert.model.encode()[:MAX_MODEL_BYTES].decode(errors="ignore"),
        "vocabulary": advert.vocabulary,
    }


def from_txt(
    txt: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None
) -> Advert:
    """Parse the advert in a peer's records; unknown entries are ignored.

    Raises HostileAdvert when an entry is missing, too long or malformed.
    """
    if not addresses:
        raise HostileAdvert("no address")
    if port is None or not 1 <= port <= MAX_PORT:
        raise HostileAdvert(f"port {port}")
    role = _ROLES.get(_text(txt, "role"))
    if role is None:
        raise HostileAdvert(f"role {_text(txt, 'role')!a}")
    return Advert(
        node_id=_matching(txt, "id", _IDENTIFIER),
        incarnation=_number(txt, "life"),
        cluster=_matching(txt, "cluster", _IDENTIFIER),
        protocol=_number(txt, "protocol"),
        role=role,
        model=_text(txt, "model"),
        vocabulary=_matching(txt, "vocabulary", _DIGEST),
        addresses=tuple(addresses[:MAX_ADDRESSES]),
        port=port,
    )


def _text(txt: Mapping[bytes, bytes | None], key: str) -> str:
    value = txt.get(key.encode()) or b""
    if len(value) > MAX_MODEL_BYTES:
        raise HostileAdvert(f"{key} of {len(value)} bytes")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise HostileAdvert(f"{key} is not UTF-8") from error
    if not text.isprintable():
        raise HostileAdvert(f"{key} is not printable")
    return text


def _matching(txt: Mapping[bytes, bytes | None], key: str, pattern: re.Pattern[str]) -> str:
    text = _text(txt, key)
    if pattern.fullmatch(text) is None:
        raise HostileAdvert(f"{key} {text[:80]!a}")
    return text


def _number(txt: Mapping[bytes, bytes | None], key: str) -> int:
    number = int(_matching(txt, key, _NUMBER))
    if number >= _MAX_NUMBER:
        raise HostileAdvert(f"{key} {number}")
    return number
