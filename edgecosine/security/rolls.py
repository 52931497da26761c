"""Rules over the authority's database: members, free names, valid certificates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from edgecosine.errors import EnrolmentRefused
from edgecosine.protocol.wire.messages import Role
from edgecosine.security.authority_database import AuthorityDatabase, AuthorityRow, CertificateRow
from edgecosine.security.certificates import Leaf, Signer, certificate_pem, key_pem
from edgecosine.security.identity import NodeIdentity


@dataclass(frozen=True, slots=True)
class ClusterMember:
    """A node as its authority knows it, by its newest certificate."""

    node_id: str
    role: Role
    issuer: str
    not_after: datetime
    is_revoked: bool
    is_expired: bool

    @property
    def is_in(self) -> bool:
        """Whether its certificate is valid."""
        return not (self.is_revoked or self.is_expired)


def members_of(database: AuthorityDatabase, now: datetime) -> list[ClusterMember]:
    """Every node by its newest certificate."""
    newest = {row.node_id: row for row in database.certificates()}
    return [
        ClusterMember(
            row.node_id,
            row.role,
            row.issuer,
            datetime.fromtimestamp(row.not_after, UTC),
            row.revoked_at is not None,
            row.not_after <= seconds(now),
        )
        for row in newest.values()
    ]


def check_free(database: AuthorityDatabase, node_id: str, now: datetime) -> None:
    """Raises EnrolmentRefused when a node of this name has a valid certificate."""
    for row in database.certificates():
        is_alive = row.revoked_at is None and row.not_after > seconds(now)
        if row.node_id == node_id and is_alive:
            raise EnrolmentRefused(
                f"there is a node called {node_id}: choose another --node-id, or revoke that one "
                f"first by `edgecosine cluster revoke {node_id}`"
            )


def known_certificate(database: AuthorityDatabase, serial: int) -> CertificateRow:
    """The certificate with this serial number.

    Raises EnrolmentRefused when it is unknown or revoked.
    """
    row = next((row for row in database.certificates() if row.serial == serial), None)
    if row is None:
        raise EnrolmentRefused("this authority knows no such certificate")
    if row.revoked_at is not None:
        raise EnrolmentRefused(f"the certificate of {row.node_id} was revoked")
    return row


def certified(
    database: AuthorityDatabase, signer: Signer, identity: NodeIdentity, leaf: Leaf
) -> Leaf:
    """Store an issued certificate; returns it."""
    database.add_certificate(
        CertificateRow(
            leaf.serial,
            identity.node_id,
            identity.role,
            signer.name,
            seconds(leaf.not_after),
            None,
        )
    )
    return leaf


def current_signer(database: AuthorityDatabase) -> Signer:
    """The current signer."""
    return signer_of(database.authorities()[-1])


def signer_of(row: AuthorityRow) -> Signer:
    """The signer in a row."""
    return Signer.load(row.key, row.certificate, row.cross)


def row_of(signer: Signer) -> AuthorityRow:
    """The row of a signer."""
    cross = certificate_pem(signer.cross) if signer.cross else ""
    return AuthorityRow(
        signer.name, key_pem(signer.key), certificate_pem(signer.certificate), cross
    )


def digest_of(secret: bytes) -> bytes:
    """The stored digest of a secret, SHA-256."""
    return hashlib.sha256(secret).digest()


def seconds(time: datetime) -> int:
    """A time in seconds since 1970."""
    return int(time.timestamp())
