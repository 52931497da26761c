"""A node's credentials: its key and certificate, and its trust list.

A directory of four files that only their owner may read. The key is created here and stays here.
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
"""Share of a certificate's lifetime after which it is renewed."""


class _Facts(msgspec.Struct, frozen=True):
    """The authority's endpoints, and its last trust list."""

    endpoints: Annotated[list[str], msgspec.Meta(max_length=8)]
    revision: int
    current: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's credentials in `directory`.

    issuer, current  common names of our certificate's signer, and of the current one
    endpoints        HOST:PORT of the authority's endpoint, in the order of attempts
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
        """Whether the directory holds credentials that this user can see."""
        return os.access(directory / NODE_FILE, os.F_OK)

    @staticmethod
    def check_place(directory: Path) -> None:
        """Raises ConfigError when credentials cannot be stored in the directory."""
        check_unshared(directory, "credentials")
        check_not_there(directory, (AUTHORITIES_FILE, REVOKED_FILE, _FACTS_FILE), "credentials")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the credentials.

        Raises ConfigError when they are missing, broken, or readable by others.
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
        """Time of renewal; the start of validity if the authority has changed."""
        if self.issuer != self.current:
            return self.not_before
        return self.not_before + _RENEWED_AT * (self.not_after - self.not_before)

    def trust(self) -> Trust:
        """The trust that the stored files describe.

        Raises EnrolmentError when the files do not match.
        """
        return make_trust(self.identity, self.node_file, self.authorities_pem, self.revoked_pem)

    def with_trust(self, trust: TrustList) -> Credentials:
        """Store a trust list, unless it is older than the present one.

        Raises EnrolmentError, without a change, when it cannot be used.
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
        """Store a new key with its certificate and trust list.

        Raises EnrolmentError, without a change, when they do not match.
        """
        enrolling.check(admission)
        # The files may have a newer trust list than this value.
        Credentials.load(self.directory).with_trust(admission.trust)
        enrolling.store_key(self.directory, admission)
        return Credentials.load(self.directory)


class Enrolling:
    """A new key and its certificate signing request."""

    def __init__(self) -> None:
        self._key = new_key()
        self.request = signing_request(self._key)

    def store(
        self, directory: Path, admission: Certificate, endpoints: Sequence[str]
    ) -> Credentials:
        """Store the key, its certificate and the trust list.

        Raises EnrolmentError, without a change, when the certificate is not for this key.
        """
        self.check(admission)
        make_private_directory(directory)
        _write_trust(directory, admission.trust, endpoints)
        self.store_key(directory, admission)
        return Credentials.load(directory)

    def store_key(self, directory: Path, admission: Certificate) -> None:
        """Store the key and its certificate in one file, so that they always match."""
        write_private(directory / NODE_FILE, key_pem(self._key) + admission.chain)

    def check(self, admission: Certificate) -> None:
        """Raises EnrolmentError when the certificate is not for this key, or not for a node."""
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
    """The node that a certificate names.

    Raises EnrolmentError when it names none.
    """
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if (identity := NodeIdentity.parse(uri)) is not None:
            return identity
    raise EnrolmentError("the certificate names no node")
