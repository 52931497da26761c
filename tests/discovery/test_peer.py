"""Adverts survive their TXT record; whatever else is in one is ignored with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.discovery.peer import (
    MAX_ADDRESSES,
    Address,
    HostileAdvert,
    advert_of,
    from_txt,
    to_txt,
)
from edgecosine.protocol.wire.vocabulary import Vocabulary
from tests.discovery.adverts import advert
from tests.protocol.wire.values import hello

MAX_TXT_BYTES = 1200


def txt_bytes(txt: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in txt.items()}


def test_advert_round_trips_in_its_txt_record() -> None:
    original = advert(model="Qwen/Qwen3-0.6B ä", vocabulary="0123456789abcdef")
    assert from_txt(txt_bytes(to_txt(original)), original.addresses, original.port) == original


def test_advert_of_a_greeting_fits_a_packet() -> None:
    words = Vocabulary.of(["a", "b"])
    greeting = hello(
        cluster="c" * 64, node_id="n" * 64, model="ä" * 256, vocabulary=words.digests,
        incarnation=(1 << 53) - 1,
    )  # fmt: skip
    original = advert_of(greeting, ["10.0.0.1"] * 50, 7000)
    assert original.vocabulary == words.short_digest
    assert len(original.endpoints) == MAX_ADDRESSES
    txt = txt_bytes(to_txt(original))
    assert sum(len(key) + len(value or b"") + 2 for key, value in txt.items()) < MAX_TXT_BYTES
    assert all(len(key) + len(value or b"") < 255 for key, value in txt.items())
    assert from_txt(txt, original.addresses, 7000).model == "ä" * 100


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("id", b"", "id ''"),
        ("id", b"../etc/passwd", "id '../etc/passwd'"),
        ("id", b"a" * 65, "id 'aaa"),
        ("life", b"-1", "life '-1'"),
        ("life", b"9999999999999999", "life 9999999999999999"),
        ("protocol", b"1.0", "protocol '1.0'"),
        ("cluster", b"a b", "cluster 'a b'"),
        ("role", b"king", "role 'king'"),
        ("role", None, "role ''"),
        ("model", b"\xff\xfe", "model is not UTF-8"),
        ("model", b"a\x1b[2J", "model is not printable"),
        ("model", b"m" * 255, "model of 255 bytes"),
        ("vocabulary", b"xyz", "vocabulary 'xyz'"),
    ],
)
def test_hostile_entry_is_named(key: str, value: bytes | None, reason: str) -> None:
    txt = txt_bytes(to_txt(advert())) | {key.encode(): value}
    with pytest.raises(HostileAdvert) as caught:
        from_txt(txt, ["10.0.0.1"], 7000)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("port", [None, 0, 70000])
def test_advert_without_a_port_is_hostile(port: int | None) -> None:
    with pytest.raises(HostileAdvert, match="port"):
        from_txt(txt_bytes(to_txt(advert())), ["10.0.0.1"], port)


def test_advert_without_an_address_is_hostile() -> None:
    with pytest.raises(HostileAdvert, match="no address"):
        from_txt(txt_bytes(to_txt(advert())), [], 7000)


@given(st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=300)))
def test_any_other_record_is_hostile(txt: dict[bytes, bytes | None]) -> None:
    with pytest.raises(HostileAdvert):
        from_txt(txt, ["10.0.0.1"], 7000)


def test_addresses_are_written_as_in_options() -> None:
    assert str(Address("10.0.0.1", 80)) == "10.0.0.1:80"
    assert str(Address("fe80::1%eth0", 80)) == "[fe80::1%eth0]:80"
