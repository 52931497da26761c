"""What proves that this node belongs to a cluster: its key and certificate, and whom to trust.

A directory of four files, all for their owner's eyes only. The key is made here and never leaves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec
from cryptography import x509

from edgecosine.errors import ConfigError, EnrolmentError
from edgecosine.security.certificates import common_name, key_pem, new_key, signing_request
from edgecosine.security.enrolment import Certificate, TrustList
from edgecosine.security.files import (
    check_not_there,
    check_private,
    check_unshared,
    make_private_directory,
    write_private,
)
from edgecosine.security.identity import NodeIdentity
from edgecosine.security.trust import Trust, make_trust

NODE_FILE: Final = "node.pem"
AUTHORITIES_FILE: Final = "authorities.pem"
REVOKED_FILE: Final = "revoked.pem"
_FACTS_FILE: Final = "cluster.json"
_RENEWED_AT: Final = 2 / 3
"""Share of its life after which a certificate is renewed."""


class _Facts(msgspec.Struct, frozen=True):
    """Where the authority's endpoint is, and what it said last."""

    endpoints: Annotated[list[str], msgspec.Meta(max_length=8)]
    revision: int
    current: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's credentials in `directory`.

    issuer, current  common names of the authority that signed ours, and of the one that signs now
    endpoints        HOST:PORT of the authority's endpoint, in the order in which to try them
    """

    directory: Path
    identity: NodeIdentity
    issuer: str
    not_before: datetime
    not_after: datetime
    authorities_pem: str
    revoked_pem: str
    revision: int
    current: str
    endpoints: tuple[str, ...]

    @staticmethod
    def are_in(directory: Path) -> bool:
        """Whether a node's credentials lie there, as far as this user can see."""
        return os.access(directory / NODE_FILE, os.F_OK)

    @staticmethod
    def check_place(directory: Path) -> None:
        """Raises ConfigError when a directory is no place for credentials."""
        check_unshared(directory, "credentials")
        check_not_there(directory, (AUTHORITIES_FILE, REVOKED_FILE, _FACTS_FILE), "credentials")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the credentials.

        Raises ConfigError when they are not there, can be read by others or are broken.
        """
        path = directory / NODE_FILE
        try:
            check_private(path)
            facts = msgspec.json.decode((directory / _FACTS_FILE).read_bytes(), type=_Facts)
            leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
            identity = _identity(leaf)
            return cls(
                directory=directory,
                identity=identity,
                issuer=common_name(leaf.issuer),
                not_before=leaf.not_valid_before_utc,
                not_after=leaf.not_valid_after_utc,
                authorities_pem=(directory / AUTHORITIES_FILE).read_text(),
                revoked_pem=(directory / REVOKED_FILE).read_text(),
                revision=facts.revision,
                current=facts.current,
                endpoints=tuple(facts.endpoints),
            )
        except (OSError, ValueError, msgspec.MsgspecError, EnrolmentError) as error:
            raise ConfigError(
                "credentials", str(directory), f"what `edgecosine cluster join` wrote ({error})"
            ) from error

    @property
    def node_file(self) -> Path:
        """Key and certificate chain, as PEM in one file."""
        return self.directory / NODE_FILE

    @property
    def authorities_file(self) -> Path:
        """The authorities' certificates, as PEM."""
        return self.directory / AUTHORITIES_FILE

    @property
    def renew_at(self) -> datetime:
        """When to ask for a new certificate; the beginning of its life if the authority changed."""
        if self.issuer != self.current:
            return self.not_before
        return self.not_before + _RENEWED_AT * (self.not_after - self.not_before)

    def trust(self) -> Trust:
        """Whom to believe, as far as the authority has told.

        Raises EnrolmentError when the files do not fit together.
        """
        return make_trust(self.identity, self.node_file, self.authorities_pem, self.revoked_pem)

    def with_trust(self, trust: TrustList) -> Credentials:
        """Keep what the authority tells, unless it is older than what it told before.

        Raises EnrolmentError when it cannot be used; nothing is kept then.
        """
        if trust.revision < self.revision:
            return self
        changed = replace(
            self,
            authorities_pem=trust.authorities,
            revoked_pem=trust.revoked,
            revision=trust.revision,
            current=trust.current,
        )
        changed.trust()
        _write_trust(self.directory, trust, self.endpoints)
        return changed

    def renewed(self, enrolling: Enrolling, admission: Certificate) -> Credentials:
        """Keep a new key with its new certificate, and what the authority told with it.

        Raises EnrolmentError when they do not fit; nothing is kept then.
        """
        enrolling.check(admission)
        # News may have come while the authority was asked, so what counts is in the files.
        Credentials.load(self.directory).with_trust(admission.trust)
        enrolling.store_key(self.directory, admission)
        return Credentials.load(self.directory)


class Enrolling:
    """A key that waits for its certificate."""

    def __init__(self) -> None:
        self._key = new_key()
        self.request = signing_request(self._key)

    def store(
        self, directory: Path, admission: Certificate, endpoints: Sequence[str]
    ) -> Credentials:
        """Keep the key, the certificate and whom to trust.

        Raises EnrolmentError when the certificate is not for this key; nothing is kept then.
        """
        self.check(admission)
        make_private_directory(directory)
        _write_trust(directory, admission.trust, endpoints)
        self.store_key(directory, admission)
        return Credentials.load(directory)

    def store_key(self, directory: Path, admission: Certificate) -> None:
        """Keep the key and its certificate, in one file so that they never part."""
        write_private(directory / NODE_FILE, key_pem(self._key) + admission.chain)

    def check(self, admission: Certificate) -> None:
        """Raises EnrolmentError when the certificate is not for this key, or no node's."""
        try:
            leaf = x509.load_pem_x509_certificates(admission.chain.encode())[0]
        except (ValueError, IndexError) as error:
            raise EnrolmentError(f"the certificate cannot be read: {error}") from error
        if leaf.public_key() != self._key.public_key():
            raise EnrolmentError("the authority sent a certificate for another key")
        _identity(leaf)


def _write_trust(directory: Path, trust: TrustList, endpoints: Sequence[str]) -> None:
    facts = _Facts(list(endpoints), trust.revision, trust.current)
    write_private(directory / AUTHORITIES_FILE, trust.authorities)
    write_private(directory / REVOKED_FILE, trust.revoked)
    write_private(directory / _FACTS_FILE, msgspec.json.encode(facts).decode())


def _identity(leaf: x509.Certificate) -> NodeIdentity:
    """Whose certificate it is.

    Raises EnrolmentError when it is no node's.
    """
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if (identity := NodeIdentity.parse(uri)) is not None:
            return identity
    raise EnrolmentError("the certificate is no node's")
