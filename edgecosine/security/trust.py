"""A node's trust as a frozen value, replaced when the authority publishes a new trust list.

The TLS 1.3 handshake proves that the peer holds the key of an unexpired certificate of the
cluster's authority. Revocation and the match of Hello and certificate are checked here.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgecosine.errors import ConfigError, EnrolmentError
from edgecosine.protocol.wire.messages import Hello
from edgecosine.security.certificates import ENROLMENT_NAME, common_name
from edgecosine.security.identity import NodeIdentity, PeerCertificate


@dataclass(frozen=True, slots=True)
class Trust:
    """Our identity and the trusted authorities.

    listening, dialling  TLS settings for the two ends of a link
    revoked              serial numbers of revoked certificates
    authorities          common names of trusted authorities
    """

    identity: NodeIdentity
    listening: ssl.SSLContext
    dialling: ssl.SSLContext
    revoked: frozenset[int]
    authorities: frozenset[str]

    def objection(self, peercert: Mapping[str, Any] | None, hello: Hello) -> str | None:
        """Why a peer with this certificate must not be linked; None if it may."""
        certificate = PeerCertificate.of(peercert)
        if certificate is None or certificate.identity is None:
            return "no certificate of a node: run `edgecosine cluster join` there"
        identity = certificate.identity
        if (hello.cluster, hello.node_id, hello.role) != (
            identity.cluster,
            identity.node_id,
            identity.role,
        ):
            return (
                f"it greets as {hello.role} {hello.node_id} of cluster {hello.cluster}, but its "
                f"certificate is that of {identity.role} {identity.node_id} of cluster "
                f"{identity.cluster}: is this a copied identity?"
            )
        if certificate.serial in self.revoked:
            return f"the certificate of {identity.node_id} was revoked"
        return None

    def doubt(self, peercert: Mapping[str, Any] | None) -> str | None:
        """Why a certificate that was valid at its handshake is not any more; None if it is.

        At a handshake `objection` applies: a cross-signed authority may not be known yet.
        """
        certificate = PeerCertificate.of(peercert)
        if certificate is None:
            return "no certificate"
        name = certificate.identity.node_id if certificate.identity else "?"
        if certificate.serial in self.revoked:
            return f"the certificate of {name} was revoked"
        if certificate.issuer not in self.authorities:
            return f"the certificate of {name} is by an authority that was replaced"
        return None


def make_trust(
    identity: NodeIdentity, certificate_file: Path, authorities_pem: str, revoked_pem: str
) -> Trust:
    """Trust from the node's key and certificate in one file, and its authority's trust list.

    Raises EnrolmentError when these do not match.
    """
    try:
        return Trust(
            identity=identity,
            listening=listening_context(certificate_file, authorities_pem),
            dialling=dialling_context(certificate_file, authorities_pem),
            revoked=read_revoked(authorities_pem, revoked_pem),
            authorities=authority_names(authorities_pem),
        )
    except (ssl.SSLError, ValueError) as error:
        raise EnrolmentError(f"{certificate_file} cannot be used: {error}") from error


def listening_context(
    certificate_file: Path, authorities_pem: str, *, is_required: bool = True
) -> ssl.SSLContext:
    """TLS settings of a listener that requests a certificate of the cluster."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, authorities_pem)
    context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
    # A resumed session would skip the check of the peer's certificate.
    context.num_tickets = 0
    context.load_cert_chain(certificate_file)
    return context


def https_context(certificate_file: Path) -> ssl.SSLContext:
    """TLS settings of a server whose clients show no certificate.

    Raises ConfigError when the file has no certificate chain with its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate_file)
    except (OSError, ssl.SSLError) as error:
        allowed = f"a PEM file with a certificate chain and its key ({error})"
        raise ConfigError("http_certificate", str(certificate_file), allowed) from error
    return context


def dialling_context(certificate_file: Path, authorities_pem: str) -> ssl.SSLContext:
    """TLS settings of a dialler. Host names are not checked, since addresses do not identify
    nodes; the Hello is compared with the certificate instead."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authorities_pem)
    context.check_hostname = False
    context.load_cert_chain(certificate_file)
    return context


def enrolment_context(authorities_pem: str, certificate_file: Path | None = None) -> ssl.SSLContext:
    """TLS settings of a client of the authority's endpoint, which no node can impersonate. To be
    used with `ENROLMENT_NAME` as server name."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authorities_pem)
    # A node may have any name, so the common name proves nothing.
    context.hostname_checks_common_name = False
    assert context.check_hostname, ENROLMENT_NAME
    if certificate_file is not None:
        context.load_cert_chain(certificate_file)
    return context


def unverified_context() -> ssl.SSLContext:
    """TLS settings to ask for an authority's certificate, which is then compared with its
    fingerprint. No secret is sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def pick_authority(authorities_pem: str, wanted: bytes) -> str:
    """The certificate with this fingerprint, as PEM.

    Raises EnrolmentError when it is not among them.
    """
    for certificate in _certificates(authorities_pem):
        pem = ssl.DER_cert_to_PEM_cert(certificate)
        if fingerprint(pem) == wanted:
            return pem
    raise EnrolmentError(
        "another endpoint answers in the authority's place: its certificate does not have the"
        " fingerprint in the token; no secret was sent to it"
    )


def fingerprint(certificate_pem: str) -> bytes:
    """SHA-256 of a certificate."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem)).digest()


def authority_names(authorities_pem: str) -> frozenset[str]:
    """Common names of authorities.

    Raises ValueError.
    """
    certificates = x509.load_pem_x509_certificates(authorities_pem.encode())
    return frozenset(common_name(certificate.subject) for certificate in certificates)


def read_revoked(authorities_pem: str, revoked_pem: str) -> frozenset[int]:
    """Serial numbers in revocation lists, each signed by one of the authorities.

    Raises EnrolmentError for a list that none of them signed, ValueError for an unreadable one.
    """
    authorities = x509.load_pem_x509_certificates(authorities_pem.encode())
    serials: set[int] = set()
    for block in _blocks(revoked_pem):
        revoked = x509.load_pem_x509_crl(block)
        if not any(_has_signed(authority, revoked) for authority in authorities):
            raise EnrolmentError("the revocation list is not signed by the cluster's authority")
        serials.update(entry.serial_number for entry in revoked)
    return frozenset(serials)


def _has_signed(authority: x509.Certificate, revoked: x509.CertificateRevocationList) -> bool:
    if authority.subject != revoked.issuer:
        return False
    try:
        return revoked.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (InvalidSignature, TypeError):
        return False


def _certificates(pem: str) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError as error:
        raise EnrolmentError(f"the authority's certificate cannot be read: {error}") from error
    return context.get_ca_certs(binary_form=True)


def _blocks(pem: str) -> list[bytes]:
    end = "-----END X509 CRL-----"
    return [(block + end).strip().encode() for block in pem.split(end) if block.strip()]


def _context(protocol: int, authorities_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authorities_pem)
    return context
