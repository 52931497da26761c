"""Creates keys, certificates and revocation lists of a cluster.

Keys are P-256, which every TLS library and Mosquitto support. The caller passes the time.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgecosine.errors import EnrolmentRefused
from edgecosine.security.identity import NodeIdentity

ENROLMENT_NAME: Final = "enrolment.edgecosine"
"""DNS name in the certificate of the authority's endpoint only, so that no node with a valid
certificate can impersonate the endpoint and collect invitation secrets."""

AUTHORITY_LIFE: Final = timedelta(days=3650)
NODE_LIFE: Final = timedelta(days=30)
BROKER_LIFE: Final = timedelta(days=397)
LIST_LIFE: Final = timedelta(days=90)
_BACKDATED: Final = timedelta(days=1)
"""Small machines may start with clocks that are behind."""

_BOTH_ENDS: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_SERVER: Final = (ExtendedKeyUsageOID.SERVER_AUTH,)

PrivateKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Leaf:
    """An end-entity certificate, with the chain to older authorities."""

    serial: int
    not_after: datetime
    chain_pem: str


@dataclass(frozen=True, slots=True)
class Signer:
    """An authority's key and certificate.

    cross  the same key certified by the previous authority, for nodes that trust only that one
    """

    key: PrivateKey
    certificate: x509.Certificate
    cross: x509.Certificate | None = None

    @classmethod
    def new(cls, cluster: str, now: datetime, before: Signer | None = None) -> Self:
        """Create an authority, cross-signed by the one `before` it."""
        key = new_key()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
                x509.NameAttribute(NameOID.COMMON_NAME, f"authority {secrets.token_hex(8)}"),
            ]
        )
        own = _authority(name, key, name, key, now, path_length=1)
        cross = None
        if before is not None:
            old = before.certificate.subject
            cross = _authority(name, key, old, before.key, now, path_length=0)
        return cls(key, own, cross)

    @classmethod
    def load(cls, key_pem: str, certificate_pem: str, cross_pem: str) -> Self:
        """Read what `key_pem` and the certificates' PEM hold."""
        return cls(
            load_key(key_pem),
            x509.load_pem_x509_certificate(certificate_pem.encode()),
            x509.load_pem_x509_certificate(cross_pem.encode()) if cross_pem else None,
        )

    @property
    def name(self) -> str:
        """The authority's unique common name."""
        return common_name(self.certificate.subject)

    def issue_node(
        self, identity: NodeIdentity, key: ec.EllipticCurvePublicKey, now: datetime
    ) -> Leaf:
        """A node's certificate, for both ends of links."""
        names = [x509.UniformResourceIdentifier(identity.uri)]
        return self._issue(identity.node_id, names, key, now, NODE_LIFE, _BOTH_ENDS)

    def issue_endpoint(self, key: ec.EllipticCurvePublicKey, now: datetime) -> Leaf:
        """The certificate of the authority's own endpoint."""
        names = [x509.DNSName(ENROLMENT_NAME)]
        return self._issue(ENROLMENT_NAME, names, key, now, NODE_LIFE, _SERVER)

    def issue_broker(
        self, hosts: Sequence[str], key: ec.EllipticCurvePublicKey, now: datetime
    ) -> Leaf:
        """An MQTT broker's certificate for these names and addresses."""
        names = [_host_name(host) for host in hosts]
        return self._issue(hosts[0][:64], names, key, now, BROKER_LIFE, _SERVER)

    def revocation_list(self, serials: Iterable[int], number: int, now: datetime) -> str:
        """A signed list of revoked certificates of this authority, as PEM."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.certificate.subject,
            last_update=now - _BACKDATED,
            next_update=now + LIST_LIFE,
        ).add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(_issuer_id(self.key), critical=False)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, now)
            builder = builder.add_revoked_certificate(revoked.build())
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def _issue(
        self,
        common: str,
        names: Sequence[x509.GeneralName],
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        lifetime: timedelta,
        usages: Sequence[x509.ObjectIdentifier],
    ) -> Leaf:
        signed = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_issuer_id(self.key), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        chain = certificate_pem(signed) + (certificate_pem(self.cross) if self.cross else "")
        return Leaf(signed.serial_number, signed.not_valid_after_utc, chain)


def new_key() -> PrivateKey:
    """A private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> str:
    """A private key as unencrypted PEM, to be stored in a private file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def load_key(pem: str) -> PrivateKey:
    """A private key that `key_pem` wrote."""
    return cast(PrivateKey, serialization.load_pem_private_key(pem.encode(), None))


def certificate_pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def common_name(name: x509.Name) -> str:
    """The common name in `name`."""
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def signing_request(key: PrivateKey) -> str:
    """A certificate signing request as PEM, without a name: the authority assigns names."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def requested_key(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, whose signature is verified.

    Raises EnrolmentRefused.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EnrolmentRefused(f"the signing request cannot be read: {error}") from error
    if not is_signed:
        raise EnrolmentRefused("the signing request is not signed by its key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentRefused("the key of the signing request is not P-256")
    return key


def _authority(
    subject: x509.Name,
    key: PrivateKey,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    now: datetime,
    *,
    path_length: int,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issuer_id(issuer_key), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _issuer_id(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
