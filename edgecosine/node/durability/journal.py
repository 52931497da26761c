"""What the gateway must not forget: requests at work, their committed tokens, answers given.

A thread writes in batches; the loop only appends to a queue and is never blocked. What the world
may see of a request waits until all that it follows from is written (the output commit of
Elnozahy et al., ACM Computing Surveys 2002, §2.6): `then` keeps that order. Where the disk refuses
or does not answer, new requests are refused and those at work go on without a journal; their final
messages wait a while for the disk (`once_kept`), since an end that is not written comes twice, with
other times, if the process is killed before it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from edgecosine.errors import JournalLost
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import FinishedRecord, Then
from edgecosine.node.durability.store import JournalStore, Statement
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import ReplyAddress

logger = logging.getLogger(__name__)

MAX_KEPT_ANSWERS: Final = 1024
MAX_KEPT_BYTES: Final = 16 << 20
_MAX_WAITING = 10_000
"""Records that wait for the disk; beyond, requests are refused and tokens are not journalled."""
_MAX_BATCH = 256
_MAX_OWED = 4096
"""Ends of requests that are kept for a disk that refuses them."""
_STUCK_S = 5.0
_HOLD_S = 10.0
"""How long the final message of a request waits for a disk that refuses its end."""
_LOOK_S = 1.0

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Record:
    """Statements that are written together. An `is_owed` one is tried again until it is written."""

    number: int
    statements: tuple[Statement, ...]
    is_lasting: bool = False
    is_owed: bool = False


class DiskJournal:
    """The journal of one node.

    Raises ConfigError when the directory cannot be used.
    """

    is_durable = True

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], BootTime] = BootTime.now,
        stuck_s: float = _STUCK_S,
        hold_s: float = _HOLD_S,
    ) -> None:
        self.store = JournalStore(directory)
        self.failure: str | None = None
        """Why nothing can be written now."""
        self._now, self._stuck_s, self._hold_s = now, stuck_s, hold_s
        self._first = self.store.first_moment(now())
        self.num_starts = self.store.count_start()
        """How often a node has begun on this journal."""
        self._records: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._owed: deque[_Record] = deque(maxlen=_MAX_OWED)
        self._num_told = self._num_written = self._num_kept = 0
        """Records told; those of them that the disk has answered; up to where nothing is owed."""
        self._waiting: deque[tuple[int, float, Then]] = deque()
        self._held: deque[tuple[int, float, Callable[[], None]]] = deque()
        self._is_stuck = False
        self._crash: BaseException | None = None
        self._has_crashed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        if self.store.damage is not None:
            logger.error(
                "journal damaged and set aside, requests of before are lost: file=%s",
                self.store.damage,
            )

    def __repr__(self) -> str:
        num_waiting = self._num_told - self._num_written
        return f"<DiskJournal {self.store.path} [{num_waiting} waiting]>"

    def wall_s(self, now: BootTime | None = None) -> float:
        """Seconds since 1970 that no step of the wall clock changes, until the machine boots."""
        return self._first.wall_s + (now or self._now()).since(self._first)

    def accept(self, ticket: ReplyAddress, request: Request, model: str, then: Then) -> None:
        """A request was let in; it is accepted once this is written."""
        if self._is_full:
            then(False)
            return
        values = (ticket.key, model, *map(_encode, (self._now(), ticket, request)))
        self._tell(
            (("DELETE FROM rounds WHERE key = ?", (ticket.key,)),
             ("INSERT OR REPLACE INTO jobs (key, model, moment, ticket, request) "
              "VALUES (?, ?, ?, ?, ?)", values),),
            is_lasting=True,
        )  # fmt: skip
        self._wait(then)

    def readdress(self, ticket: ReplyAddress) -> None:
        """The same request came again and is to be answered elsewhere."""
        values = (_encode(ticket), ticket.key)
        self._tell((("UPDATE jobs SET ticket = ? WHERE key = ?", values),))

    def begin(self, key: str) -> None:
        """The request's sessions begin. Counted since the last token, to know deadly requests."""
        self._tell(((_BEGIN, (key, key, key)),))

    def leave(self, key: str) -> None:
        """The request's sessions end with this process, which ends in order."""
        self._tell((("UPDATE jobs SET num_starts = 0 WHERE key = ?", (key,)),))

    def commit(self, key: str, choice: int, position: int, committed: Committed) -> None:
        """One choice has more tokens, behind `position` others."""
        if not self._is_full:
            values = (key, choice, position, _encode(committed))
            self._tell((("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)", values),))

    def finish(self, kept: FinishedRecord) -> None:
        """The request has had its final message, which is kept."""
        final = _encode(kept.final)
        parts = _encode(kept.parts)
        values = (
            kept.key, kept.digest, kept.state, kept.kept_until, False, len(final), final, parts
        )  # fmt: skip
        now = self.wall_s()
        self._tell(
            (
                *_end(kept.key),
                ("INSERT OR REPLACE INTO answers (key, digest, state, kept_until, is_delivered, "
                 "num_bytes, final, parts) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values),
                ("DELETE FROM answers WHERE kept_until < ?", (now,)),
                (_TRIM, (MAX_KEPT_ANSWERS, MAX_KEPT_BYTES)),
            ),
            is_owed=True,
        )  # fmt: skip

    def deliver(self, key: str) -> None:
        """The broker has the final message."""
        sql = "UPDATE answers SET is_delivered = 1, parts = x'90' WHERE key = ?"
        self._tell(((sql, (key,)),), is_owed=True)

    def forget(self, key: str) -> None:
        """The request was not accepted after all, or another target answers it."""
        answer = ("DELETE FROM answers WHERE key = ?", (key,))
        self._tell((*_end(key), answer), is_owed=True)

    def then(self, call: Callable[[], None]) -> None:
        """Call when all that was told before is written, or cannot be."""
        if self._num_told == self._num_written and not self._waiting:
            call()
        else:
            self._wait(lambda _: call())

    def once_kept(self, call: Callable[[], None]) -> None:
        """Call when the ends that were told before are written, or were not in a long while.

        Never called when this process ends before: the next one goes on with such requests.
        """
        if self._num_kept == self._num_told and not (self._waiting or self._held):
            call()
        else:
            self._held.append((self._num_told, time.monotonic(), call))

    async def settled(self) -> None:
        """Wait until all that was told is written, or cannot be."""
        is_settled = asyncio.Event()
        self.then(is_settled.set)
        await is_settled.wait()

    async def run(self) -> NoReturn:
        """Write until cancelled."""
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._work, name="journal", daemon=True)
        thread.start()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._has_crashed.wait()
                if self._crash is not None:
                    raise self._crash
                self._look()
        finally:
            self._records.put(None)
            # A disk that does not answer is not waited for.
            thread.join(self._stuck_s)
            if not thread.is_alive():
                self.store.close()
            self._is_stuck = True
            while self._waiting:
                self._waiting.popleft()[2](False)
        raise AssertionError("a journal ends by an exception")

    @property
    def _is_full(self) -> bool:
        return self._num_told - self._num_written >= _MAX_WAITING

    def _tell(
        self,
        statements: tuple[Statement, ...],
        *,
        is_lasting: bool = False,
        is_owed: bool = False,
    ) -> None:
        self._num_told += 1
        self._records.put(_Record(self._num_told, statements, is_lasting, is_owed))

    def _wait(self, then: Then) -> None:
        if self._is_stuck:
            then(False)
        else:
            self._waiting.append((self._num_told, time.monotonic(), then))

    def _look(self) -> None:
        """Wait no longer for a disk that does not answer; try one again that owes something."""
        if self._owed and self._num_told == self._num_written:
            self._tell(())
        if self._waiting and time.monotonic() - self._waiting[0][1] > self._stuck_s:
            self._is_stuck = True
            self._release(self._num_told, f"no answer from the disk in {self._stuck_s:.0f} s")
        self._send_held()

    def _written(self, number: int, failure: str | None) -> None:
        self._num_written, self._is_stuck = number, False
        if failure is None:
            self._num_kept = number
        self._release(number, failure)
        self._send_held()

    def _release(self, number: int, failure: str | None) -> None:
        if failure is not None and self.failure is None:
            logger.error("journal lost, requests are refused until it is back: reason=%s", failure)
        elif failure is None and self.failure is not None:
            logger.info("journal found")
        self.failure = failure
        while self._waiting and self._waiting[0][0] <= number:
            _, _, then = self._waiting.popleft()
            _call(partial(then, failure is None))

    def _send_held(self) -> None:
        """Call what waits for ends that are written by now, or has waited for long enough."""
        latest = time.monotonic() - self._hold_s
        while self._held and (self._held[0][0] <= self._num_kept or self._held[0][1] <= latest):
            _call(self._held.popleft()[2])

    def _work(self) -> None:
        """The thread: one transaction for all that has come."""
        assert self._loop is not None
        try:
            while (batch := self._take()) is not None:
                failure = self._write(batch)
                self._loop.call_soon_threadsafe(self._written, batch[-1].number, failure)
            if self._owed and (failure := self._write([])) is not None:
                logger.error("ends of requests were not written: reason=%s", failure)
        except Exception as error:  # noqa: BLE001 -- it ends the actor, in the loop
            self._crash = error
            self._loop.call_soon_threadsafe(self._has_crashed.set)

    def _take(self) -> list[_Record] | None:
        first = self._records.get()
        batch: list[_Record] = []
        while first is not None:
            batch.append(first)
            if len(batch) == _MAX_BATCH or self._records.empty():
                return batch
            first = self._records.get()
        if batch:
            self._records.put(None)
        return batch or None

    def _write(self, batch: list[_Record]) -> str | None:
        """Why the batch was not written; what is owed of it comes with the next one."""
        records = [*self._owed, *batch]
        try:
            self.store.write(
                (each for record in records for each in record.statements),
                is_lasting=any(record.is_lasting for record in records),
            )
        except JournalLost as error:
            self._owed.extend(record for record in batch if record.is_owed)
            return str(error)
        self._owed.clear()
        return None


def _call(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # noqa: BLE001 -- the others wait for the disk alone
        logger.error("step behind the journal failed: cause=%s", cause_of(error))  # noqa: TRY400


_BEGIN = """
    UPDATE jobs SET
        num_starts = 1 + CASE num_rounds_then
            WHEN (SELECT count(*) FROM rounds WHERE key = ?) THEN num_starts ELSE 0 END,
        num_rounds_then = (SELECT count(*) FROM rounds WHERE key = ?)
    WHERE key = ?
"""
_TRIM = """
    DELETE FROM answers WHERE number IN (
        SELECT number FROM (
            SELECT number, row_number() OVER newest AS place, sum(num_bytes) OVER newest AS total
            FROM answers WINDOW newest AS (ORDER BY number DESC)
        ) WHERE place > ? OR total > ?
    )
"""


def _end(key: str) -> tuple[Statement, Statement]:
    return (
        ("DELETE FROM jobs WHERE key = ?", (key,)),
        ("DELETE FROM rounds WHERE key = ?", (key,)),
    )
