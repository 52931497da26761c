"""Starts and controls the processes of ranks 1 to N - 1 from rank 0.

The standard input of each is one end of a socket pair, and the process ends when it closes. So no
rank outlives rank 0, and rank 0 detects the end of every rank.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Final

from edgecosine.engine.tensor_parallel.messages import (
    Report,
    StartWorker,
    WorkerChannel,
    WorkerFailed,
    WorkerOrder,
)
from edgecosine.errors import EngineError

_COMMAND: Final = (sys.executable, "-m", "edgecosine.engine.loading.rank_process")
_STOP_TIMEOUT_S: Final = 2.0
_EXIT_REASON_TIMEOUT_S: Final = 2.0
"""Time for a failed rank to report its error or end."""


class WorkerProcess:
    """The process of one rank."""

    def __init__(self, start: StartWorker) -> None:
        ours, theirs = socket.socketpair()
        self.rank = start.rank
        self._channel = WorkerChannel(ours)
        with theirs:
            self.process = subprocess.Popen(
                _COMMAND,
                stdin=theirs.fileno(),
                env={**os.environ, "LOCAL_RANK": str(start.rank)},
                # Ctrl-C in a terminal reaches rank 0 alone, which ends the others.
                start_new_session=True,
            )
        self._timeout_s = start.timeout_s
        self.send(start)

    def send(self, order: WorkerOrder) -> None:
        """Send an order; raises EngineError when the rank has ended or reads nothing."""
        try:
            self._channel.send(order, self._timeout_s)
        except OSError as error:
            raise EngineError(
                self.exit_reason(_EXIT_REASON_TIMEOUT_S) or self._timeout_reason()
            ) from error

    def expect(self, kind: type[Report], timeout_s: float) -> None:
        """Wait for a report.

        Raises EngineError when the rank sends another report, ends, or sends none for `timeout_s`.
        """
        try:
            report = self._channel.receive(timeout_s)
        except TimeoutError as error:
            raise EngineError(self._timeout_reason(timeout_s)) from error
        except EOFError as error:
            raise EngineError(self._exit_status()) from error
        if not isinstance(report, kind):
            raise EngineError(f"rank {self.rank} failed: {_reason(report)}")

    def exit_reason(self, timeout_s: float) -> str | None:
        """The reason why the rank ended; None if it does not end within `timeout_s`."""
        try:
            return f"rank {self.rank} failed: {_reason(self._channel.receive(timeout_s))}"
        except EOFError:
            return self._exit_status()
        except OSError:  # a timeout, or a closed channel
            return None

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _timeout_reason(self, timeout_s: float | None = None) -> str:
        return f"rank {self.rank} has not replied for {timeout_s or self._timeout_s:g} s"

    def _exit_status(self) -> str:
        try:
            code = self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"rank {self.rank} closed its channel"
        how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        return f"rank {self.rank} (process {self.process.pid}) ended by {how}"


class Workers:
    """The processes of all ranks but rank 0."""

    def __init__(self, starts: Iterable[StartWorker]) -> None:
        self._ranks: list[WorkerProcess] = []
        try:
            for start in starts:
                self._ranks.append(WorkerProcess(start))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [rank.process.pid for rank in self._ranks]

    def send(self, order: WorkerOrder) -> None:
        """Send an order to every rank; raises EngineError when a rank has ended."""
        for rank in self._ranks:
            rank.send(order)

    def expect(self, kind: type[Report], timeout_s: float) -> None:
        """Wait for a report of every rank.

        Raises EngineError when a rank fails or does not report within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        for rank in self._ranks:
            rank.expect(kind, max(0.001, deadline - time.monotonic()))

    def explain(self, error: Exception) -> Exception:
        """The error to raise for `error`, with the reasons of the ranks that failed.

        `error` itself is returned when all ranks report the same.
        """
        deadline = time.monotonic() + _EXIT_REASON_TIMEOUT_S
        found = [rank.exit_reason(max(0.001, deadline - time.monotonic())) for rank in self._ranks]
        reasons = [reason for reason in found if reason is not None]
        if (
            isinstance(error, EngineError)
            and reasons
            and all(str(error) in reason for reason in reasons)
        ):
            return error
        # A killed rank reports nothing; the others report that they lost it.
        reasons.sort(key=lambda reason: " failed: " in reason)
        return EngineError("; ".join(reasons) if reasons else f"no answer from the ranks: {error}")

    def close(self) -> None:
        """End all processes."""
        for rank in self._ranks:
            rank.close()


def _reason(report: WorkerOrder | Report) -> str:
    return report.reason if isinstance(report, WorkerFailed) else f"unexpected {report}"
