"""What a journal tells a node that starts again: requests to go on with, answers to give again."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from edgecosine.errors import Refusal
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import FinishedRecord
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Committed, Logprobs, Request
from edgecosine.protocol.api.request_record import ReplyAddress, RequestStatus

logger = logging.getLogger(__name__)

MAX_STARTS = 5
"""Starts without a new token after which a request is taken for what ends the process."""

_OTHER_MODEL = Refusal(
    "the cluster was restarted with another model", code="model_changed", status=503
)
DEADLY = Refusal(
    f"the target ended {MAX_STARTS} times at this request", code="internal_error", status=500
)
_ticket = msgspec.msgpack.Decoder(ReplyAddress).decode
_request = msgspec.msgpack.Decoder(Request).decode
_moment = msgspec.msgpack.Decoder(BootTime).decode
_committed = msgspec.msgpack.Decoder(Committed).decode
_outgoing = msgspec.msgpack.Decoder(Outgoing).decode
_parts = msgspec.msgpack.Decoder(tuple[Outgoing, ...]).decode
_state = msgspec.json.Decoder(RequestStatus).decode


@dataclass(frozen=True, slots=True)
class RecoveredRequest:
    """A request that was accepted and has had no final message."""

    ticket: ReplyAddress
    request: Request
    age_s: float
    said: dict[int, Committed]
    """By choice."""
    has_begun: bool = False
    num_deaths: int = 0
    """Processes that ended while it was at work, since its last new token."""
    fault: Refusal | None = None
    """Why it cannot go on."""


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """All that a journal tells, oldest first."""

    jobs: tuple[RecoveredRequest, ...] = ()
    answers: tuple[FinishedRecord, ...] = ()


NO_PAST = RecoveredState()


def read_past(journal: DiskJournal, model: str, now: BootTime) -> RecoveredState:
    """What a former process left; `model` is what this one serves.

    Raises JournalLost.
    """
    read = journal.store.read
    rounds: dict[str, dict[int, list[tuple[int, bytes]]]] = defaultdict(lambda: defaultdict(list))
    for key, choice, position, committed in read("SELECT * FROM rounds ORDER BY position"):
        rounds[key][choice].append((position, committed))
    jobs, answers = list[RecoveredRequest](), list[FinishedRecord]()
    for key, *row in read(
        "SELECT key, model, moment, ticket, request, num_starts, num_rounds_then FROM jobs "
        "ORDER BY number"
    ):
        with _giving_up(journal, key):
            jobs.append(_job(row, rounds[key], model, now))
    for key, *row in read(
        "SELECT key, digest, state, final, kept_until, is_delivered, parts FROM answers "
        "WHERE kept_until >= ? ORDER BY number",
        (journal.wall_s(now),),
    ):
        with _giving_up(journal, key):
            answers.append(_kept(key, row))
    return RecoveredState(tuple(jobs), tuple(answers))


@contextlib.contextmanager
def _giving_up(journal: DiskJournal, key: str) -> Iterator[None]:
    """What cannot be read is forgotten: it must not keep the node from starting, ever again."""
    try:
        yield
    except msgspec.MsgspecError as error:
        logger.error("journalled request cannot be read: request=%s cause=%s", key, cause_of(error))  # noqa: TRY400
        journal.forget(key)


def _job(
    row: list[Any], rounds: dict[int, list[tuple[int, bytes]]], model: str, now: BootTime
) -> RecoveredRequest:
    then, moment, ticket, request, num_starts, num_rounds_then = row
    num_rounds = sum(map(len, rounds.values()))
    num_deaths = num_starts if num_rounds == num_rounds_then else 0
    fault = None
    if then != model:
        fault = _OTHER_MODEL
    elif num_deaths >= MAX_STARTS:
        fault = DEADLY
    return RecoveredRequest(
        _ticket(ticket),
        _request(request),
        now.since(_moment(moment)),
        {choice: join(parts) for choice, parts in rounds.items()},
        has_begun=num_starts + num_rounds > 0,
        num_deaths=num_deaths,
        fault=fault,
    )


def _kept(key: str, row: list[Any]) -> FinishedRecord:
    digest, state, final, kept_until, is_delivered, parts = row
    return FinishedRecord(
        key, digest, _state(f'"{state}"'), _outgoing(final), kept_until,
        is_delivered=bool(is_delivered), parts=_parts(parts),
    )  # fmt: skip


def join(parts: list[tuple[int, bytes]]) -> Committed:
    """One choice's tokens up to the first gap, which a full disk may have left."""
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
