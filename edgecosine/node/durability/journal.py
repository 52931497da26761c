"""The durable journal: active requests, their committed tokens, and finals.

A thread writes in batches; the event loop only appends to a queue and never blocks. Records of one
iteration of the event loop go to the thread together, since each hand-over wakes it. A reply is
sent after the records that it depends on are written (output commit: Elnozahy et al., ACM Computing
Surveys 2002, section 2.6): `then` keeps that order. If the disk fails or hangs, new requests are
refused and active ones continue without a journal. Their finals wait some time for the disk
(`once_kept`): if the process is killed before an end is written, the client gets a second final
with other times.
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
from typing import NoReturn

from edgecosine.errors import JournalLost
from edgecosine.node.durability import statements
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import FinishedRecord, OnWritten
from edgecosine.node.durability.statements import Statements
from edgecosine.node.durability.store import JournalStore
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import RequestTicket

logger = logging.getLogger(__name__)

_MAX_WAITING = 10_000
"""Unwritten records beyond which requests are refused and tokens are not journalled."""
_MAX_BATCH = 256
_MAX_UNWRITTEN = 4096
"""Ends of requests that are kept for a disk that fails."""
_STUCK_S = 5.0
_HOLD_S = 10.0
"""Seconds for which a final waits for a disk that fails to write the end of its request."""
_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Record:
    """Statements of one transaction. A record that `must_keep` is retried until it is written."""

    number: int
    statements: Statements
    is_lasting: bool = False
    must_keep: bool = False


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
        """Why records cannot be written now; None if they can."""
        self._now, self._stuck_s, self._hold_s = now, stuck_s, hold_s
        self._first = self.store.first_moment(now())
        self.num_starts = self.store.count_start()
        """Number of starts of a node with this journal, including this one."""
        self._records: queue.SimpleQueue[list[_Record] | None] = queue.SimpleQueue()
        self._newest: list[_Record] = []
        """Records that are handed over at the end of this iteration of the event loop."""
        self._unwritten: deque[_Record] = deque(maxlen=_MAX_UNWRITTEN)
        self._num_records = self._num_written = self._num_kept = 0
        """Records so far; those written or failed; those before the first unwritten end."""
        self._waiting: deque[tuple[int, float, OnWritten]] = deque()
        self._held: deque[tuple[int, float, Callable[[], None]]] = deque()
        self._is_stuck = False
        self._crash: BaseException | None = None
        self._has_crashed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        if self.store.damage is not None:
            logger.error(
                "journal damaged and set aside, its requests are lost: file=%s",
                self.store.damage,
            )

    def __repr__(self) -> str:
        num_waiting = self._num_records - self._num_written
        return f"<DiskJournal {self.store.path} [{num_waiting} waiting]>"

    def wall_s(self, now: BootTime | None = None) -> float:
        """Return seconds since 1970; steps of the wall clock change nothing until a reboot."""
        return self._first.wall_s + (now or self._now()).since(self._first)

    def accept(
        self, ticket: RequestTicket, request: Request, model: str, on_written: OnWritten
    ) -> None:
        """Record a new request, which is accepted once this is written."""
        if self._is_full:
            on_written(False)
            return
        written = statements.accept(ticket, request, model, self._now())
        self._record(written, is_lasting=True)
        self._wait(on_written)

    def readdress(self, ticket: RequestTicket) -> None:
        """Record a new reply address of a repeated request."""
        self._record(statements.readdress(ticket))

    def begin(self, key: str) -> None:
        """Count a start of a request's sessions since its last token, to detect crashes."""
        self._record(statements.begin(key))

    def leave(self, key: str) -> None:
        """Record that a request's sessions end because this process ends in order."""
        self._record(statements.leave(key))

    def commit(self, key: str, choice: int, position: int, committed: Committed) -> None:
        """Record new tokens of a choice, which follow `position` earlier ones."""
        if not self._is_full:
            self._record(statements.commit(key, choice, position, committed))

    def finish(self, kept: FinishedRecord) -> None:
        """Record the end of a request, and keep its final."""
        self._record(statements.finish(kept, self.wall_s()), must_keep=True)

    def deliver(self, key: str) -> None:
        """Record that the final of a request was delivered."""
        self._record(statements.deliver(key), must_keep=True)

    def forget(self, key: str) -> None:
        """Remove a request that was refused after all, or that another target owns."""
        self._record(statements.forget(key), must_keep=True)

    def then(self, call: Callable[[], None]) -> None:
        """Call once all earlier records are written or have failed."""
        if self._num_records == self._num_written and not self._waiting:
            call()
        else:
            self._wait(lambda _: call())

    def once_kept(self, call: Callable[[], None]) -> None:
        """Call once all earlier ends of requests are written, or have failed for a long time.

        If this process ends before, the call never comes: the next process continues the requests.
        """
        if self._num_kept == self._num_records and not (self._waiting or self._held):
            call()
        else:
            self._held.append((self._num_records, time.monotonic(), call))

    async def settled(self) -> None:
        """Wait until all earlier records are written or have failed."""
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
                    async with asyncio.timeout(_CHECK_S):
                        await self._has_crashed.wait()
                if self._crash is not None:
                    raise self._crash
                self._check_disk()
        finally:
            self._hand_over()
            self._records.put(None)
            # The wait is bounded, since the disk may hang.
            thread.join(self._stuck_s)
            if not thread.is_alive():
                self.store.close()
            self._is_stuck = True
            while self._waiting:
                self._waiting.popleft()[2](False)
        raise AssertionError("a journal ends by an exception")

    @property
    def _is_full(self) -> bool:
        return self._num_records - self._num_written >= _MAX_WAITING

    def _record(
        self,
        written: Statements,
        *,
        is_lasting: bool = False,
        must_keep: bool = False,
    ) -> None:
        self._num_records += 1
        self._newest.append(_Record(self._num_records, written, is_lasting, must_keep))
        if self._loop is None:
            self._hand_over()
        elif len(self._newest) == 1:
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """Give the newest records to the thread."""
        if self._newest:
            self._records.put(self._newest)
            self._newest = []

    def _wait(self, on_written: OnWritten) -> None:
        if self._is_stuck:
            on_written(False)
        else:
            self._waiting.append((self._num_records, time.monotonic(), on_written))

    def _check_disk(self) -> None:
        """Release what waits for a disk that hangs, and retry a disk that failed."""
        if self._unwritten and self._num_records == self._num_written:
            self._record(())
        if self._waiting and time.monotonic() - self._waiting[0][1] > self._stuck_s:
            self._is_stuck = True
            self._release(self._num_records, f"no answer from the disk in {self._stuck_s:.0f} s")
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
            logger.info("journal writable again")
        self.failure = failure
        while self._waiting and self._waiting[0][0] <= number:
            _, _, on_written = self._waiting.popleft()
            _call(partial(on_written, failure is None))

    def _send_held(self) -> None:
        """Call what waits for ends that are written now, or has waited for `hold_s` seconds."""
        latest = time.monotonic() - self._hold_s
        while self._held and (self._held[0][0] <= self._num_kept or self._held[0][1] <= latest):
            _call(self._held.popleft()[2])

    def _work(self) -> None:
        """Write in a thread, in one transaction for all records that are queued."""
        assert self._loop is not None
        try:
            while (batch := self._take()) is not None:
                failure = self._write(batch)
                self._loop.call_soon_threadsafe(self._written, batch[-1].number, failure)
            if self._unwritten and (failure := self._write([])) is not None:
                logger.error("ends of requests not written: reason=%s", failure)
        except Exception as error:  # noqa: BLE001 -- it ends the actor, in the loop
            self._crash = error
            self._loop.call_soon_threadsafe(self._has_crashed.set)

    def _take(self) -> list[_Record] | None:
        first = self._records.get()
        batch: list[_Record] = []
        while first is not None:
            batch += first
            if len(batch) >= _MAX_BATCH or self._records.empty():
                return batch
            first = self._records.get()
        if batch:
            self._records.put(None)
        return batch or None

    def _write(self, batch: list[_Record]) -> str | None:
        """Write a batch, and return why that failed; records to keep come with the next batch."""
        records = [*self._unwritten, *batch]
        try:
            self.store.write(
                (each for record in records for each in record.statements),
                is_lasting=any(record.is_lasting for record in records),
            )
        except JournalLost as error:
            self._unwritten.extend(record for record in batch if record.must_keep)
            return str(error)
        self._unwritten.clear()
        return None


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # noqa: BLE001 -- the other callbacks must run
        logger.error("callback of the journal failed: cause=%s", cause_of(error))  # noqa: TRY400
