"""The ledger: bounded, each name one request, states only forward."""

from __future__ import annotations

import pytest

from edgecosine.errors import RequestError
from edgecosine.node.gateway.request_table import (
    MAX_KEPT_ANSWERS,
    MAX_KEPT_BYTES,
    FinishedRequest,
    RequestTable,
)
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import ReplyAddress

FINAL = Outgoing("t", b"text")


def ticket(request_id: str, client_id: str = "a", digest: bytes = b"d") -> ReplyAddress:
    return ReplyAddress(client_id, request_id, "ask", "reply", digest=digest)


def request(request_id: str = "1", n: int = 1) -> Request:
    return Request("a", request_id, "ask", "x", n=n)


def test_states_only_go_forward() -> None:
    ledger = RequestTable(max_sessions=1)
    entry = ledger.admit(ticket("1"), request(), 0.0)
    assert ledger.advance(entry, "running")
    assert not ledger.advance(entry, "queued")
    assert not ledger.advance(entry, "running")
    ledger.finish(entry, "done", FINAL, 1.0)
    assert not ledger.advance(entry, "failed")
    assert entry.state == "done"


def test_more_choices_than_sessions_never_find_room() -> None:
    ledger = RequestTable(max_sessions=3)
    with pytest.raises(RequestError, match="n is 4") as refusal:
        ledger.admit(ticket("1"), request(n=4), 0.0)
    assert (refusal.value.parameter, refusal.value.status) == ("n", 400)


def test_name_is_remembered_at_work_and_after() -> None:
    ledger = RequestTable(max_sessions=1)
    assert ledger.recall(ticket("1")) is None
    entry = ledger.admit(ticket("1"), request(), 0.0)
    assert ledger.recall(ticket("1")) is entry
    ledger.finish(entry, "done", FINAL, 1.0)
    assert ledger.recall(ticket("1")) == FinishedRequest(b"d", "done", FINAL)
    with pytest.raises(RequestError, match="another request") as refusal:
        ledger.recall(ticket("1", digest=b"e"))
    assert refusal.value.status == 409


def test_cancel_finds_whose_request_is_meant() -> None:
    ledger = RequestTable(max_sessions=9)
    mine = ledger.admit(ticket("1", "a"), request(), 0.0)
    assert ledger.find("1", None) is mine
    ledger.admit(ticket("1", "b"), request(), 0.0)
    assert ledger.find("1", None) is None
    anonymous = ledger.admit(ticket("1", "anon"), request(), 0.0)
    assert ledger.find("1", None) is anonymous
    assert ledger.find("1", "a") is mine
    assert ledger.find("2", None) is None


@pytest.mark.parametrize(
    ("final", "num_kept"),
    [
        (Outgoing("t", b""), MAX_KEPT_ANSWERS),
        (Outgoing("t", bytes(MAX_KEPT_BYTES // 4 - 1)), 4),
        (Outgoing("t", b"", correlation=bytes(MAX_KEPT_BYTES // 4 - 1)), 4),
    ],
    ids=["many", "long", "long correlation data"],
)
def test_kept_answers_are_bounded_and_the_asked_for_stay(final: Outgoing, num_kept: int) -> None:
    ledger = RequestTable(max_sessions=1)
    for number in range(num_kept + 5):
        entry = ledger.admit(ticket(str(number)), request(), 0.0)
        ledger.finish(entry, "done", final, 1.0)
        assert ledger.recall(ticket("0")) is not None
    assert f"{num_kept} answers" in repr(ledger)
    assert ledger.recall(ticket("1")) is None


def test_answers_that_were_forgotten_take_no_room() -> None:
    """Neither those whose time is over nor those that are replaced."""
    ledger = RequestTable(max_sessions=4, keep_s=1.0)
    final = Outgoing("t", b"", correlation=bytes(MAX_KEPT_BYTES // 4 - 1))
    for number in range(8):
        ledger.keep(ticket("1").key, FinishedRequest(b"d", "done", final, until=number))
        ledger.keep(ticket("2").key, FinishedRequest(b"d", "done", final, until=number))
        assert ledger.recall(ticket("1"), now=number + 1.0) is None
    for number in range(3, 6):
        ledger.keep(ticket(str(number)).key, FinishedRequest(b"d", "done", final))
    assert "4 answers" in repr(ledger)
