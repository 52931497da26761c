"""Whatever bytes come to the endpoint, or from it: a value, or an error of ours."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import EnrolmentError
from edgecosine.security.enrolment import (
    MAX_REQUEST_BYTES,
    Certificate,
    Denial,
    Introduce,
    Join,
    Renew,
    TrustList,
    WatchTrust,
    read_answer,
    read_request,
    write_line,
)

TEXT = st.text(max_size=50)
TRUST = st.builds(TrustList, st.integers(0, 1 << 40), TEXT, TEXT, TEXT)
REQUESTS = st.one_of(
    st.builds(Introduce),
    st.builds(Join, st.binary(min_size=16, max_size=16), TEXT, TEXT),
    st.builds(Renew, TEXT),
    st.builds(WatchTrust, st.integers(0, 1 << 40)),
)
ANSWERS = st.one_of(TRUST, st.builds(Certificate, TEXT, TEXT, TRUST), st.builds(Denial, TEXT))
KINDS = st.sampled_from(["introduce", "join", "renew", "watch", "trust", "admission", "denial"])
VALUES = st.one_of(TEXT, st.integers(), st.none(), st.lists(TEXT), st.dictionaries(TEXT, TEXT))


@given(REQUESTS)
def test_enrolment_requests_round_trip(request: Join) -> None:
    line = write_line(request)
    assert line.count(b"\n") == 1
    assert read_request(line) == request


@given(ANSWERS)
def test_enrolment_answers_round_trip(answer: Denial) -> None:
    assert read_answer(write_line(answer)) == answer


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(line: bytes) -> None:
    for read in (read_request, read_answer):
        with contextlib.suppress(EnrolmentError):
            read(line)


@given(KINDS, st.dictionaries(st.sampled_from(["secret", "node_id", "known", "trust"]), VALUES))
def test_wrong_fields_are_read_or_refused(kind: str, fields: dict[str, object]) -> None:
    line = msgspec.json.encode({"type": kind, **fields})
    for read in (read_request, read_answer):
        with contextlib.suppress(EnrolmentError):
            read(line)


def test_too_deeply_nested_json_is_refused() -> None:
    line = b'{"type":"introduce","more":' + b"[" * (MAX_REQUEST_BYTES - 30) + b"\n"
    for read in (read_request, read_answer):
        with pytest.raises(EnrolmentError, match="cannot be read"):
            read(line)


def test_refusal_does_not_repeat_the_secret() -> None:
    line = b'{"type":"join","secret":"dmVyeSBzZWNyZXQ=","node_id":"x","signing_request":""}'
    with pytest.raises(EnrolmentError) as failure:
        read_request(line)
    assert "dmVyeSBz" not in str(failure.value)
    assert "very secret" not in repr(Join(b"very secret 1234", "x", ""))
