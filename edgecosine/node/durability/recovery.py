"""Reads the journal of a former process: unfinished requests and kept finals."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edgecosine.errors import Refusal
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import FinishedRecord
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import read_final
from edgecosine.protocol.api.request import Committed, Logprobs, Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestStatus, RequestTicket

logger = logging.getLogger(__name__)

MAX_STARTS: Final = 5
"""Starts without a new token after which a request is taken for the cause of the crashes."""

_OTHER_MODEL = Refusal(
    "the cluster was restarted with another model", code="model_changed", status=503
)
DEADLY = Refusal(
    f"the target crashed {MAX_STARTS} times while processing this request",
    code="internal_error",
    status=500,
)
_ticket = msgspec.msgpack.Decoder(RequestTicket).decode
_request = msgspec.msgpack.Decoder(Request).decode
_moment = msgspec.msgpack.Decoder(BootTime).decode
_committed = msgspec.msgpack.Decoder(Committed).decode
_message = msgspec.msgpack.Decoder(Outgoing).decode
_messages = msgspec.msgpack.Decoder(tuple[Outgoing, ...]).decode
_state = msgspec.json.Decoder(RequestStatus).decode


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """The content of a journal, oldest first."""

    requests: tuple[RequestRecord, ...] = ()
    finals: tuple[FinishedRecord, ...] = ()


NOTHING_RECOVERED = RecoveredState()


def recover(journal: DiskJournal, model: str, now: BootTime) -> RecoveredState:
    """Return the requests and finals of a former process; requests for a model other than `model`
    have a fault.

    Raises JournalLost.
    """
    read = journal.store.read
    rounds: dict[str, dict[int, list[tuple[int, bytes]]]] = defaultdict(lambda: defaultdict(list))
    for key, choice, position, committed in read("SELECT * FROM rounds ORDER BY position"):
        rounds[key][choice].append((position, committed))
    requests, finals = list[RequestRecord](), list[FinishedRecord]()
    for key, *row in read(
        "SELECT key, model, moment, ticket, request, num_starts, num_rounds_then FROM jobs "
        "ORDER BY number"
    ):
        with _forgetting_unreadable(journal, key):
            requests.append(_read_request(row, rounds[key], model, now))
    for key, *row in read(
        "SELECT key, digest, state, final, kept_until, is_delivered, parts FROM answers "
        "WHERE kept_until >= ? ORDER BY number",
        (journal.wall_s(now),),
    ):
        with _forgetting_unreadable(journal, key):
            finals.append(_read_final(key, row))
    return RecoveredState(tuple(requests), tuple(finals))


@contextlib.contextmanager
def _forgetting_unreadable(journal: DiskJournal, key: str) -> Iterator[None]:
    """Remove an unreadable request, which must not prevent any start of the node."""
    try:
        yield
    except msgspec.MsgspecError as error:
        logger.error("journalled request cannot be read: request=%s cause=%s", key, cause_of(error))  # noqa: TRY400
        journal.forget(key)


def _read_request(
    row: list[Any], rounds: dict[int, list[tuple[int, bytes]]], model: str, now: BootTime
) -> RequestRecord:
    former_model, moment, ticket, request, num_starts, num_rounds_then = row
    num_rounds = sum(map(len, rounds.values()))
    num_crashes = num_starts if num_rounds == num_rounds_then else 0
    fault = None
    if former_model != model:
        fault = _OTHER_MODEL
    elif num_crashes >= MAX_STARTS:
        fault = DEADLY
    return RequestRecord(
        _ticket(ticket),
        _request(request),
        age_s=now.since(_moment(moment)),
        resumed={choice: join(parts) for choice, parts in rounds.items()},
        num_crashes=num_crashes,
        fault=fault,
        state="queued" if num_starts + num_rounds else "accepted",
    )


def _read_final(key: str, row: list[Any]) -> FinishedRecord:
    digest, state, message, kept_until, is_delivered, parts = row
    final = read_final(_message(message))
    if final is None:
        raise msgspec.ValidationError("the message is no final")
    return FinishedRecord(
        key, digest, _state(f'"{state}"'), final, kept_until,
        is_delivered=bool(is_delivered), parts=_messages(parts),
    )  # fmt: skip


def join(parts: list[tuple[int, bytes]]) -> Committed:
    """Return the tokens of one choice up to the first gap, which a full disk may have left.

    `parts` are pairs of the number of earlier tokens and an encoded `Committed`, in order.
    """
    tokens: list[int] = []
    logprobs: list[Logprobs] = []
    for position, part in parts:
        if position < len(tokens):
            continue
        if position > len(tokens):
            break
        committed = _committed(part)
        tokens.extend(committed.tokens)
        logprobs.extend(committed.logprobs)
    return Committed(tuple(tokens), tuple(logprobs))
