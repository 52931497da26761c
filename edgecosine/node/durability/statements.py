"""The SQL by which the journal records what happens to a request."""

from __future__ import annotations

from typing import Final

import msgspec

from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import MAX_KEPT_ANSWERS, MAX_KEPT_BYTES, FinishedRecord
from edgecosine.node.durability.store import Statement
from edgecosine.protocol.api.replies import final_message
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import RequestTicket

Statements = tuple[Statement, ...]

_encode = msgspec.msgpack.Encoder().encode

_ACCEPT: Final = (
    "INSERT OR REPLACE INTO jobs (key, model, moment, ticket, request) VALUES (?, ?, ?, ?, ?)"
)
_BEGIN: Final = """
    UPDATE jobs SET
        num_starts = 1 + CASE num_rounds_then
            WHEN (SELECT count(*) FROM rounds WHERE key = ?) THEN num_starts ELSE 0 END,
        num_rounds_then = (SELECT count(*) FROM rounds WHERE key = ?)
    WHERE key = ?
"""
_FINISH: Final = (
    "INSERT OR REPLACE INTO answers (key, digest, state, kept_until, is_delivered, num_bytes, "
    "final, parts) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_TRIM: Final = """
    DELETE FROM answers WHERE number IN (
        SELECT number FROM (
            SELECT number, row_number() OVER newest AS place, sum(num_bytes) OVER newest AS total
            FROM answers WINDOW newest AS (ORDER BY number DESC)
        ) WHERE place > ? OR total > ?
    )
"""
_DELIVER: Final = "UPDATE answers SET is_delivered = 1, parts = x'90' WHERE key = ?"


def accept(ticket: RequestTicket, request: Request, model: str, now: BootTime) -> Statements:
    """Add a request, without tokens."""
    values = (ticket.key, model, *map(_encode, (now, ticket, request)))
    return ("DELETE FROM rounds WHERE key = ?", (ticket.key,)), (_ACCEPT, values)


def readdress(ticket: RequestTicket) -> Statements:
    """Replace the reply address of a request."""
    return (("UPDATE jobs SET ticket = ? WHERE key = ?", (_encode(ticket), ticket.key)),)


def begin(key: str) -> Statements:
    """Count a start of a request's sessions since its last token."""
    return ((_BEGIN, (key, key, key)),)


def leave(key: str) -> Statements:
    """Reset the count of starts of a request's sessions."""
    return (("UPDATE jobs SET num_starts = 0 WHERE key = ?", (key,)),)


def commit(key: str, choice: int, position: int, committed: Committed) -> Statements:
    """Add tokens of a choice, which follow `position` earlier ones."""
    values = (key, choice, position, _encode(committed))
    return (("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)", values),)


def finish(kept: FinishedRecord, wall_s: float) -> Statements:
    """Replace a request by its final, and remove the finals that are too old or too many."""
    final, parts = _encode(final_message(kept.final)), _encode(kept.parts)
    values = (
        kept.key, kept.digest, kept.state, kept.kept_until, False, len(final), final, parts
    )  # fmt: skip
    return (
        *_remove(kept.key),
        (_FINISH, values),
        ("DELETE FROM answers WHERE kept_until < ?", (wall_s,)),
        (_TRIM, (MAX_KEPT_ANSWERS, MAX_KEPT_BYTES)),
    )


def deliver(key: str) -> Statements:
    """Mark a final as delivered, and drop its stream."""
    return ((_DELIVER, (key,)),)


def forget(key: str) -> Statements:
    """Remove a request, its tokens and its final."""
    return (*_remove(key), ("DELETE FROM answers WHERE key = ?", (key,)))


def _remove(key: str) -> Statements:
    return (
        ("DELETE FROM jobs WHERE key = ?", (key,)),
        ("DELETE FROM rounds WHERE key = ?", (key,)),
    )
