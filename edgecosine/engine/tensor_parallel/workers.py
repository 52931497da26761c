"""The processes of ranks 1 to N - 1, as rank 0 sees them.

Each has one end of a socket pair as its standard input, and ends when that closes. So none outlives
rank 0, however that ends, and rank 0 learns of every death from its own end.
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
    Channel,
    Report,
    StartWorker,
    WorkerFailed,
    WorkerOrder,
)
from edgecosine.errors import EngineError

_COMMAND: Final = (sys.executable, "-m", "edgecosine.engine.loading.rank_process")
_STOP_TIMEOUT_S: Final = 2.0
_EXIT_REASON_TIMEOUT_S: Final = 2.0
"""How long a rank that failed may take to say so, or to be seen dead."""


class WorkerProcess:
    """One rank in a process of its own."""

    def __init__(self, start: StartWorker) -> None:
        ours, theirs = socket.socketpair()
        self.rank = start.rank
        self._channel = Channel(ours)
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
        """Raises EngineError when the rank is gone or does not listen."""
        try:
            self._channel.send(order, self._timeout_s)
        except OSError as error:
            raise EngineError(
                self.exit_reason(_EXIT_REASON_TIMEOUT_S) or self._timeout_reason()
            ) from error

    def expect(self, kind: type[Report], timeout_s: float) -> None:
        """Wait for a report.

        Raises EngineError when the rank says something else, ends, or is silent for `timeout_s`.
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
        """Why the rank ended, if it does within `timeout_s`."""
        try:
            return f"rank {self.rank} failed: {_reason(self._channel.receive(timeout_s))}"
        except EOFError:
            return self._exit_status()
        except OSError:  # silence, or a channel that is closed already
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
        return f"rank {self.rank} has said nothing for {timeout_s or self._timeout_s:g} s"

    def _exit_status(self) -> str:
        try:
            code = self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"rank {self.rank} closed its channel"
        how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        return f"rank {self.rank} (process {self.process.pid}) ended by {how}"


class Workers:
    """All ranks but rank 0."""

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
        """Their process numbers, by rank."""
        return [rank.process.pid for rank in self._ranks]

    def send(self, order: WorkerOrder) -> None:
        """Raises EngineError when a rank is gone."""
        for rank in self._ranks:
            rank.send(order)

    def expect(self, kind: type[Report], timeout_s: float) -> None:
        """Wait for a report of every rank.

        Raises EngineError when one fails first or is silent for `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        for rank in self._ranks:
            rank.expect(kind, max(0.001, deadline - time.monotonic()))

    def explain(self, error: Exception) -> Exception:
        """What became of the ranks, after `error` showed that something did.

        An error that all ranks share is given back as it is.
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
        # A rank that was killed says nothing; the others only tell that they lost it.
        reasons.sort(key=lambda reason: " failed: " in reason)
        return EngineError("; ".join(reasons) if reasons else f"no answer from the ranks: {error}")

    def close(self) -> None:
        """End all processes."""
        for rank in self._ranks:
            rank.close()


def _reason(report: WorkerOrder | Report) -> str:
    return report.reason if isinstance(report, WorkerFailed) else f"unexpected {report}"
