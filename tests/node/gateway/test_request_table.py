"""The request table: bounded, one request for each key, states only advance."""

from __future__ import annotations

import pytest

from edgecosine.errors import RequestError
from edgecosine.node.durability.interface import MAX_KEPT_ANSWERS, MAX_KEPT_BYTES
from edgecosine.node.gateway.request_table import (
    FinishedRequest,
    RequestTable,
)
from edgecosine.protocol.api.replies import FinalReply
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket

FINAL = FinalReply("1", "t", b"text")


def ticket(request_id: str, client_id: str = "a", digest: bytes = b"d") -> RequestTicket:
    return RequestTicket(client_id, request_id, "ask", "reply", digest=digest)


def added(table: RequestTable, address: RequestTicket) -> RequestRecord:
    record = RequestRecord(address, Request("a", address.request_id, "ask", "x"))
    table.add(record, 0.0)
    return record


def test_states_only_go_forward() -> None:
    table = RequestTable()
    record = added(table, ticket("1"))
    assert record.advance("running")
    assert not record.advance("queued")
    assert not record.advance("running")
    table.finish(record, "done", FINAL, 1.0)
    assert not record.advance("failed")
    assert record.state == "done"


def test_key_is_known_while_active_and_afterwards() -> None:
    table = RequestTable()
    assert table.recall(ticket("1")) is None
    record = added(table, ticket("1"))
    assert table.recall(ticket("1")) is record
    table.finish(record, "done", FINAL, 1.0)
    assert table.recall(ticket("1")) == FinishedRequest(b"d", "done", FINAL)
    with pytest.raises(RequestError, match="another request") as refusal:
        table.recall(ticket("1", digest=b"e"))
    assert refusal.value.status == 409


def test_cancel_finds_the_request_of_the_named_client() -> None:
    table = RequestTable()
    mine = added(table, ticket("1", "a"))
    assert table.find("1", None) is mine
    added(table, ticket("1", "b"))
    assert table.find("1", None) is None
    anonymous = added(table, ticket("1", "anon"))
    assert table.find("1", None) is anonymous
    assert table.find("1", "a") is mine
    assert table.find("2", None) is None


@pytest.mark.parametrize(
    ("final", "num_kept"),
    [
        (FinalReply("1", "t", b""), MAX_KEPT_ANSWERS),
        (FinalReply("1", "t", bytes(MAX_KEPT_BYTES // 4 - 1)), 4),
        (FinalReply("1", "t", b"", correlation=bytes(MAX_KEPT_BYTES // 4 - 1)), 4),
    ],
    ids=["many", "long", "long correlation data"],
)
def test_kept_finals_are_bounded_and_requested_ones_stay(final: FinalReply, num_kept: int) -> None:
    table = RequestTable()
    for number in range(num_kept + 5):
        record = added(table, ticket(str(number)))
        table.finish(record, "done", final, 1.0)
        assert table.recall(ticket("0")) is not None
    assert f"{num_kept} finals" in repr(table)
    assert table.recall(ticket("1")) is None


def test_forgotten_finals_take_no_room() -> None:
    """This holds for expired finals and for replaced ones."""
    table = RequestTable(keep_s=1.0)
    final = FinalReply("1", "t", b"", correlation=bytes(MAX_KEPT_BYTES // 4 - 1))
    for number in range(8):
        table.keep(ticket("1").key, FinishedRequest(b"d", "done", final, until=number))
        table.keep(ticket("2").key, FinishedRequest(b"d", "done", final, until=number))
        assert table.recall(ticket("1"), now=number + 1.0) is None
    for number in range(3, 6):
        table.keep(ticket(str(number)).key, FinishedRequest(b"d", "done", final))
    assert "4 finals" in repr(table)
