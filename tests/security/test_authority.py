"""Which nodes are admitted, and the reasons for refusals."""

from __future__ import annotations

import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import ConfigError, EnrolmentError, EnrolmentRefused
from edgecosine.security.authority import Authority
from edgecosine.security.credentials import Credentials, Enrolling
from edgecosine.security.enrolment import TrustList
from edgecosine.security.identity import NodeIdentity
from edgecosine.security.join_token import JoinToken, read_token, write_token
from tests.security.cluster_home import Home
from tests.security.tls import agree


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def serial_of(credentials: Credentials) -> int:
    """Number of a node's certificate, as its peers see it."""
    trust = credentials.trust()
    return agree(trust.listening, trust.dialling).serial


def test_token_works_once(home: Home) -> None:
    secret = home.secret()
    home.authority.admit(secret, "kitchen", Enrolling().request, home.now)
    with pytest.raises(EnrolmentRefused, match="used already, by kitchen"):
        home.authority.admit(secret, "cellar", Enrolling().request, home.now)
    assert [m.node_id for m in home.authority.members(home.now)] == ["kitchen"]


def test_token_expires(home: Home) -> None:
    secret = home.secret(minutes=15)
    late = home.now + timedelta(minutes=15)
    with pytest.raises(EnrolmentRefused, match="has expired"):
        home.authority.admit(secret, "kitchen", Enrolling().request, late)
    home.authority.admit(secret, "kitchen", Enrolling().request, late - timedelta(seconds=1))


def test_guessed_token_is_refused(home: Home) -> None:
    home.secret()
    with pytest.raises(EnrolmentRefused, match="made no such token"):
        home.authority.admit(bytes(16), "kitchen", Enrolling().request, home.now)


def test_failed_join_leaves_the_token_valid(home: Home) -> None:
    home.admit("kitchen")
    secret = home.secret()
    with pytest.raises(EnrolmentRefused, match="there is a node called kitchen"):
        home.authority.admit(secret, "kitchen", Enrolling().request, home.now)
    with pytest.raises(EnrolmentRefused, match="node_id = 'a/b'"):
        home.authority.admit(secret, "a/b", Enrolling().request, home.now)
    with pytest.raises(EnrolmentRefused, match="cannot be read"):
        home.authority.admit(secret, "cellar", "no request", home.now)
    home.authority.admit(secret, "cellar", Enrolling().request, home.now)


def test_token_determines_the_role_and_optionally_the_name(home: Home) -> None:
    secret = home.secret("target", node_id="attic")
    with pytest.raises(EnrolmentRefused, match="is for attic, not cellar"):
        home.authority.admit(secret, "cellar", Enrolling().request, home.now)
    assert home.authority.admit(secret, "attic", Enrolling().request, home.now).role == "target"


def test_validity_of_a_token_is_bounded(home: Home) -> None:
    for ttl in (timedelta(0), timedelta(days=8)):
        with pytest.raises(ConfigError, match="ttl"):
            home.authority.invite("drafter", ttl, home.now)


def test_revoked_name_may_join_again_with_a_new_certificate(home: Home) -> None:
    target, old = home.admit("attic", "target"), home.admit("kitchen")
    number = serial_of(old)
    home.authority.revoke("kitchen", home.now)
    with pytest.raises(EnrolmentRefused, match="kitchen was revoked"):
        home.authority.renew(number, Enrolling().request, home.now)
    with pytest.raises(ConfigError, match="one of attic"):
        home.authority.revoke("kitchen", home.now)
    new = serial_of(home.admit("kitchen"))
    assert home.tell(target).trust().revoked == {number}
    home.authority.renew(new, Enrolling().request, home.now)


def test_renewal_keeps_name_and_role_and_revocation_covers_all_certificates(home: Home) -> None:
    first = home.admit("kitchen")
    enrolling = Enrolling()
    number = serial_of(first)
    second = first.renewed(enrolling, home.authority.renew(number, enrolling.request, home.now))
    assert second.identity == first.identity
    assert serial_of(second) != number
    home.authority.revoke("kitchen", home.now)
    assert home.tell(home.admit("attic", "target")).trust().revoked == {
        number,
        serial_of(second),
    }


def test_expired_node_frees_its_name(home: Home) -> None:
    home.admit("kitchen")
    home.now += timedelta(days=31)
    [member] = home.authority.members(home.now)
    assert member.is_expired
    home.admit("kitchen")


def test_files_are_readable_by_their_owner_only(home: Home) -> None:
    home.admit("kitchen")
    files = [path for path in home.folder.rglob("*") if path.is_file()]
    assert {"ledger.db", "node.pem"} <= {path.name for path in files}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (home.place("kitchen"), home.folder / "lab" / "ca" / "authority"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_key_readable_by_others_is_refused(home: Home) -> None:
    credentials = home.admit("kitchen")
    credentials.node_file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Credentials.load(credentials.directory)
    (home.authority.folder / "ledger.db").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Authority(home.authority.folder.parent)


def test_second_authority_in_a_directory_is_refused(home: Home) -> None:
    before = home.authority.fingerprint
    with pytest.raises(ConfigError, match="left as it is"):
        Authority.make(home.authority.folder.parent, "lab", ":1", home.now)
    assert Authority(home.authority.folder.parent).fingerprint == before


def test_secrets_are_not_stored_in_plain_text(home: Home) -> None:
    secret = home.secret()
    stored = (home.authority.folder / "ledger.db").read_bytes()
    assert secret not in stored
    assert secret.hex().encode() not in stored


def test_certificate_of_another_key_is_refused(home: Home) -> None:
    mine, other = Enrolling(), Enrolling()
    admission = home.authority.admit(home.secret(), "kitchen", other.request, home.now)
    with pytest.raises(EnrolmentError, match="for another key"):
        mine.store(home.place("kitchen"), admission, [])
    assert not Credentials.are_in(home.place("kitchen"))


def test_older_trust_list_is_refused(home: Home) -> None:
    """An old list could let a revoked node in again."""
    credentials, _ = home.admit("attic", "target"), home.admit("kitchen")
    before = home.authority.trust_list(home.now)
    home.authority.revoke("kitchen", home.now)
    informed = home.tell(credentials)
    assert informed.with_trust(before) is informed
    assert len(Credentials.load(credentials.directory).trust().revoked) == 1


def test_trust_list_with_another_signature_is_refused(home: Home, tmp_path: Path) -> None:
    credentials = home.admit("attic", "target")
    away = Home(tmp_path, cluster="away").authority.trust_list(home.now)
    own = home.authority.trust_list(home.now)
    mixed = TrustList(99, own.authorities, away.revoked, own.current)
    with pytest.raises(EnrolmentError, match="not signed"):
        credentials.with_trust(mixed)
    assert Credentials.load(credentials.directory).revision == credentials.revision


def test_authority_key_can_be_replaced_in_a_running_cluster(home: Home) -> None:
    target, drafter = home.admit("attic", "target"), home.admit("kitchen")
    old_name, left_over = drafter.issuer, drafter.trust()
    home.authority.rotate(home.now)
    with pytest.raises(ConfigError, match="one change at a time"):
        home.authority.rotate(home.now)
    enrolling = Enrolling()
    renewed = drafter.renewed(
        enrolling,
        home.authority.renew(serial_of(drafter), enrolling.request, home.now),
    )
    assert renewed.issuer != old_name

    # The target does not know the change, and both ends still trust each other.
    agree(target.trust().listening, renewed.trust().dialling)
    agree(renewed.trust().listening, target.trust().dialling)

    target = home.tell(target)
    assert target.renew_at < home.now
    with pytest.raises(ConfigError, match="attic did not renew yet"):
        home.authority.finish_rotation(home.now)
    enrolling = Enrolling()
    target = target.renewed(
        enrolling, home.authority.renew(serial_of(target), enrolling.request, home.now)
    )
    home.authority.finish_rotation(home.now)
    target, renewed = home.tell(target), home.tell(renewed)
    agree(target.trust().listening, renewed.trust().dialling)
    with pytest.raises(ssl.SSLCertVerificationError):
        agree(target.trust().listening, left_over.dialling)


@given(
    fingerprint=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=16),
    addresses=st.lists(st.from_regex(r"[a-z0-9.]{1,40}:[0-9]{1,5}", fullmatch=True), max_size=8),
)
def test_token_round_trips_and_its_repr_hides_the_secret(
    fingerprint: bytes, secret: bytes, addresses: list[str]
) -> None:
    token = JoinToken("home", fingerprint, secret, addresses)
    text = write_token(token)
    assert read_token(f" {text}\n") == token
    assert repr(secret) not in f"{token!r} {token}"
    assert " " not in text


@given(st.text(max_size=300))
def test_invalid_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError):
        read_token("ecs1-" + text)


@given(at=st.integers(0, 80), by=st.integers(1, 25))
def test_mistyped_token_is_detected(at: int, by: int) -> None:
    text = write_token(JoinToken("home", bytes(32), bytes(16), ["a:1"]))
    at += len("ecs1-")
    other = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[(ord(text[at]) + by) % 26]
    if other != text[at]:
        with pytest.raises(ConfigError):
            read_token(text[:at] + other + text[at + 1 :])


@given(st.text(max_size=80))
def test_uri_is_that_of_a_node_or_none(text: str) -> None:
    for uri in (text, f"urn:edgecosine:node:{text}", f"urn:edgecosine:node:home:drafter:{text}"):
        identity = NodeIdentity.parse(uri)
        assert identity is None or identity.uri == uri
