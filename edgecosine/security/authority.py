"""The cluster's certificate authority, stored in a directory on one machine.

A node is admitted by an invitation that works once, identified by its certificate afterwards, and
excluded by revocation. The authority's key can be replaced while the cluster runs: the old key
certifies the new one, so that a node with either trusts the other. The caller passes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

from edgecosine.errors import ConfigError, EnrolmentRefused
from edgecosine.protocol.wire.messages import Role
from edgecosine.security.authority_database import (
    make_database,
    reading,
    writing,
)
from edgecosine.security.certificates import (
    Signer,
    key_pem,
    new_key,
    requested_key,
)
from edgecosine.security.enrolment import Certificate, TrustList
from edgecosine.security.files import check_private, make_private_directory
from edgecosine.security.identity import NodeIdentity
from edgecosine.security.join_token import new_secret
from edgecosine.security.rolls import (
    ClusterMember,
    certified,
    check_free,
    current_signer,
    digest_of,
    known_certificate,
    members_of,
    row_of,
    seconds,
    signer_of,
)
from edgecosine.security.trust import fingerprint

MAX_TTL: Final = timedelta(days=7)
_REMEMBERED: Final = timedelta(days=7)
"""How long expired entries are kept, so that a late request gets the reason."""
FOLDER: Final = "authority"
_FILE: Final = "ledger.db"


class Authority:
    """The authority of one cluster, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FOLDER / _FILE
        try:
            check_private(self._path)
        except FileNotFoundError as error:
            raise ConfigError(
                "credentials", str(directory), "where the cluster's authority is; this machine does"
                " not have it: go to the one where `edgecosine cluster init` was run",
            ) from error  # fmt: skip
        with reading(self._path) as database:
            self.cluster = database.fact("cluster")
            self.listen = database.fact("listen")
        self.folder = directory / FOLDER

    def __repr__(self) -> str:
        return f"<Authority {self.cluster}>"

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether the directory holds an authority."""
        return (directory / FOLDER / _FILE).exists()

    @classmethod
    def make(cls, directory: Path, cluster: str, listen: str, now: datetime) -> Self:
        """Create an authority whose endpoint listens at HOST:PORT.

        Raises ConfigError when there is one.
        """
        if cls.is_in(directory):
            allowed = "a place without an authority; there is one, and it was left as it is"
            raise ConfigError("credentials", str(directory), allowed)
        make_private_directory(directory)
        make_private_directory(directory / FOLDER)
        path = directory / FOLDER / _FILE
        make_database(path)
        with writing(path) as database:
            database.set_fact("cluster", cluster)
            database.set_fact("listen", listen)
            database.add_authority(row_of(Signer.new(cluster, now)), seconds(now))
        return cls(directory)

    @property
    def revision(self) -> int:
        """Number of the trust list; grows with every change."""
        with reading(self._path) as database:
            return database.revision

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the current signer's certificate."""
        with reading(self._path) as database:
            return fingerprint(database.authorities()[-1].certificate)

    def invite(self, role: Role, ttl: timedelta, now: datetime, node_id: str = "") -> bytes:
        """Create an invitation, with a `node_id` for that node only; returns its secret.

        Raises ConfigError.
        """
        NodeIdentity(self.cluster, role, node_id or "any")
        if not timedelta(0) < ttl <= MAX_TTL:
            raise ConfigError("ttl", str(ttl), f"longer than nothing, at most {MAX_TTL.days} days")
        secret = new_secret()
        with writing(self._path) as database:
            database.forget_invitations(seconds(now - _REMEMBERED))
            database.add_invitation(digest_of(secret), role, node_id, seconds(now + ttl))
        return secret

    def admit(self, secret: bytes, node_id: str, request_pem: str, now: datetime) -> Certificate:
        """Certify an invited node and use up its invitation.

        Raises EnrolmentRefused.
        """
        key = requested_key(request_pem)
        with writing(self._path) as database:
            invitation = database.invitation(digest_of(secret))
            if invitation is None:
                raise EnrolmentRefused("this authority made no such token")
            if invitation.used_by:
                raise EnrolmentRefused(
                    f"the token was used already, by {invitation.used_by}: a token works once; if "
                    f"that was another machine, revoke {invitation.used_by}"
                )
            if invitation.expires_at <= seconds(now):
                raise EnrolmentRefused("the token has expired: ask for another one")
            if invitation.node_id not in ("", node_id):
                raise EnrolmentRefused(f"the token is for {invitation.node_id}, not {node_id}")
            check_free(database, node_id, now)
            try:
                identity = NodeIdentity(self.cluster, invitation.role, node_id)
            except ConfigError as error:
                raise EnrolmentRefused(str(error)) from error
            database.use_invitation(digest_of(secret), node_id)
            signer = current_signer(database)
            leaf = certified(database, signer, identity, signer.issue_node(identity, key, now))
        return Certificate(leaf.chain_pem, identity.role, self.trust_list(now))

    def admit_here(self, identity: NodeIdentity, request_pem: str, now: datetime) -> Certificate:
        """Certify a node on the authority's machine.

        Raises EnrolmentRefused.
        """
        secret = self.invite(identity.role, timedelta(minutes=1), now, identity.node_id)
        return self.admit(secret, identity.node_id, request_pem, now)

    def renew(self, serial: int, request_pem: str, now: datetime) -> Certificate:
        """A new certificate for the node whose certificate has this number.

        Raises EnrolmentRefused.
        """
        key = requested_key(request_pem)
        with writing(self._path) as database:
            row = known_certificate(database, serial)
            identity = NodeIdentity(self.cluster, row.role, row.node_id)
            database.forget_certificates(seconds(now - _REMEMBERED))
            signer = current_signer(database)
            leaf = certified(database, signer, identity, signer.issue_node(identity, key, now))
        return Certificate(leaf.chain_pem, identity.role, self.trust_list(now))

    def check_member(self, serial: int) -> None:
        """Raises EnrolmentRefused when the certificate with this serial number is not valid."""
        with reading(self._path) as database:
            known_certificate(database, serial)

    def revoke(self, node_id: str, now: datetime) -> None:
        """Revoke a node's certificates; a node of the same name may be invited again.

        Raises ConfigError when there is no such node.
        """
        with writing(self._path) as database:
            if not database.revoke(node_id, seconds(now)):
                names = sorted({r.node_id for r in database.certificates() if r.revoked_at is None})
                raise ConfigError(
                    "NODE",
                    node_id,
                    f"one of {', '.join(names)}" if names else "no name: no node has joined",
                )
            database.revise()

    def members(self, now: datetime) -> list[ClusterMember]:
        """Every node with a stored certificate."""
        with reading(self._path) as database:
            return members_of(database, now)

    def trust_list(self, now: datetime) -> TrustList:
        """The current trust list."""
        with reading(self._path) as database:
            revision, rows = database.revision, database.authorities()
            revoked = [row for row in database.certificates() if row.revoked_at is not None]
        lists = [
            signer_of(row).revocation_list(
                [r.serial for r in revoked if r.issuer == row.name], revision, now
            )
            for row in rows
        ]
        certificates = [row.certificate for row in rows]
        return TrustList(revision, "".join(certificates), "".join(lists), rows[-1].name)

    def rotate(self, now: datetime) -> str:
        """Sign with a new key; the old one stays trusted. Returns the new signer's name.

        Raises ConfigError when the last rotation is not finished.
        """
        with writing(self._path) as database:
            rows = database.authorities()
            if len(rows) > 1:
                raise ConfigError(
                    "rotate", rows[-1].name, "one change at a time: finish this one by "
                    "`edgecosine cluster rotate --finish`",
                )  # fmt: skip
            signer = Signer.new(self.cluster, now, signer_of(rows[-1]))
            database.add_authority(row_of(signer), seconds(now))
            database.revise()
        return signer.name

    def finish_rotation(self, now: datetime, *, is_forced: bool = False) -> None:
        """Stop trusting the old key.

        Raises ConfigError when no rotation is in progress and, unless forced, when nodes still have
        certificates by the old key only.
        """
        with writing(self._path) as database:
            old = database.authorities()[:-1]
            if not old:
                raise ConfigError("finish", "now", "only after `edgecosine cluster rotate`")
            left = [
                member.node_id
                for member in self.members(now)
                if member.issuer in {row.name for row in old}
                and not (member.is_revoked or member.is_expired)
            ]
            if left and not is_forced:
                raise ConfigError(
                    "finish", "now", f"only when no node depends on the old key; {', '.join(left)} "
                    "did not renew yet: start or revoke them, or give --force to put them out",
                )  # fmt: skip
            for row in old:
                database.drop_authority(row.name)
            database.revise()

    def issue_endpoint(self, now: datetime) -> str:
        """A fresh key and certificate for the endpoint, as PEM."""
        key = new_key()
        with reading(self._path) as database:
            leaf = current_signer(database).issue_endpoint(key.public_key(), now)
        return key_pem(key) + leaf.chain_pem

    def issue_broker(self, hosts: Sequence[str], now: datetime) -> tuple[str, str]:
        """A fresh key, and a certificate chain for an MQTT broker at these hosts, as PEM."""
        key = new_key()
        with reading(self._path) as database:
            leaf = current_signer(database).issue_broker(hosts, key.public_key(), now)
        return key_pem(key), leaf.chain_pem
