"""What a journal tells a node that starts again: requests to go on with, answers to give again."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass

import msgspec

from edgecosine.errors import Refusal
from edgecosine.node.journal import DiskJournal
from edgecosine.node.moments import Moment
from edgecosine.node.records import Kept
from edgecosine.protocol.intake import Ticket
from edgecosine.protocol.publication import Outgoing
from edgecosine.protocol.replies import State
from edgecosine.protocol.request import Committed, Logprobs, Request

logger = logging.getLogger(__name__)

MAX_STARTS = 5
"""Starts without a new token after which a request is taken for what ends the process."""

_OTHER_MODEL = Refusal(
    "the cluster was restarted with another model", code="model_changed", status=503
)
DEADLY = Refusal(
    f"the target ended {MAX_STARTS} times at this request", code="internal_error", status=500
)
_ticket = msgspec.msgpack.Decoder(Ticket).decode
_request = msgspec.msgpack.Decoder(Request).decode
_moment = msgspec.msgpack.Decoder(Moment).decode
_committed = msgspec.msgpack.Decoder(Committed).decode
_outgoing = msgspec.msgpack.Decoder(Outgoing).decode
_parts = msgspec.msgpack.Decoder(tuple[Outgoing, ...]).decode
_state = msgspec.json.Decoder(State).decode


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was accepted and has had no final message."""

    ticket: Ticket
    request: Request
    age_s: float
    said: dict[int, Committed]
    """By choice."""
    has_begun: bool = False
    fault: Refusal | None = None
    """Why it cannot go on."""


@dataclass(frozen=True, slots=True)
class Past:
    """All that a journal tells, oldest first."""

    jobs: tuple[Job, ...] = ()
    answers: tuple[Kept, ...] = ()


NO_PAST = Past()


def read_past(journal: DiskJournal, model: str, now: Moment) -> Past:
    """What a former process left; `model` is what this one serves.

    Raises JournalLost.
    """
    read = journal.store.read
    rounds: dict[str, dict[int, list[tuple[int, bytes]]]] = defaultdict(lambda: defaultdict(list))
    for key, choice, position, committed in read("SELECT * FROM rounds ORDER BY position"):
        rounds[key][choice].append((position, committed))
    jobs = []
    for key, *row in read(
        "SELECT key, model, moment, ticket, request, num_starts, num_rounds_then FROM jobs "
        "ORDER BY number"
    ):
        then, moment, ticket, request, num_starts, num_rounds_then = row
        num_rounds = sum(map(len, rounds[key].values()))
        fault = None
        if then != model:
            fault = _OTHER_MODEL
        elif num_starts >= MAX_STARTS and num_rounds == num_rounds_then:
            fault = DEADLY
        said = {choice: join(parts) for choice, parts in rounds[key].items()}
        age_s = now.since(_moment(moment))
        jobs.append(
            Job(_ticket(ticket), _request(request), age_s, said, num_starts + num_rounds > 0, fault)
        )
    answers = tuple(
        Kept(
            key, digest, _state(f'"{state}"'), _outgoing(final), kept_until,
            is_delivered=bool(is_delivered), parts=_parts(parts),
        )
        for key, digest, state, final, kept_until, is_delivered, parts in read(
            "SELECT key, digest, state, final, kept_until, is_delivered, parts FROM answers "
            "WHERE kept_until >= ? ORDER BY number", (journal.wall_s(now),),
        )
    )  # fmt: skip
    return Past(tuple(jobs), answers)


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
