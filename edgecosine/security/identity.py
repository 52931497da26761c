"""The node identity in a certificate: cluster, role and node id.

The identity is a URN among the certificate's alternative names, which the standard library reads
after a verified handshake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from edgecosine.errors import ConfigError
from edgecosine.protocol.wire.messages import Role

_PREFIX: Final = "urn:edgecosine:node"
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ROLES: Final[Mapping[str, Role]] = {
    "target": "target",
    "drafter": "drafter",
    "member": "member",
}


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """One node of one cluster.

    Raises ConfigError when a part is invalid.
    """

    cluster: str
    role: Role
    node_id: str

    def __post_init__(self) -> None:
        for key in ("cluster", "node_id"):
            value = getattr(self, key)
            if not _IDENTIFIER.fullmatch(value):
                raise ConfigError(key, value, "1 to 64 of the characters A-Z a-z 0-9 _ . -")
        if self.role not in _ROLES:
            raise ConfigError("role", self.role, "target, drafter or member")

    @property
    def uri(self) -> str:
        """The URN in a certificate."""
        return f"{_PREFIX}:{self.cluster}:{self.role}:{self.node_id}"

    @classmethod
    def parse(cls, uri: str) -> Self | None:
        """Parse a URN; None when it is not a node identity."""
        prefix, _, names = uri.partition(f"{_PREFIX}:")
        parts = names.split(":")
        if prefix or len(parts) != 3 or parts[1] not in _ROLES:
            return None
        try:
            return cls(parts[0], _ROLES[parts[1]], parts[2])
        except ConfigError:
            return None


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The contents of a peer's verified certificate.

    issuer  common name of the authority that signed it
    """

    serial: int
    issuer: str
    identity: NodeIdentity | None

    @classmethod
    def of(cls, peercert: Mapping[str, Any] | None) -> Self | None:
        """Parse the result of `ssl.SSLObject.getpeercert`; None without a certificate."""
        if not peercert:
            return None
        issuer = {name: value for part in peercert.get("issuer", ()) for name, value in part}
        names = [v for kind, v in peercert.get("subjectAltName", ()) if kind == "URI"]
        return cls(
            serial=int(peercert["serialNumber"], 16),
            issuer=issuer.get("commonName", ""),
            identity=NodeIdentity.parse(names[0]) if len(names) == 1 else None,
        )
