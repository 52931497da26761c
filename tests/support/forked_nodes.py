"""Node processes forked from a server process that has imported all code.

A node that starts with a new interpreter needs seconds for the import of torch and transformers. A
forked node starts at once. It is a process with a pid, sockets and a log file of its own, and runs
the command line of `edgecosine node`.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from edgecosine.local import child_processes
from edgecosine.local.cluster import ClusterPlan, Environment, LocalCluster

_PRELOADED = (
    __name__,
    "edgecosine.cli.node",
    "edgecosine.engine.loading.load",
    "edgecosine.engine.draft.drafter",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "torch._dynamo",
)
_COMMAND = (sys.executable, "-m", "edgecosine")
_PR_SET_PDEATHSIG = 1

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([*_PRELOADED])


class ForkedProcess:
    """The part of `asyncio.subprocess.Process` that clusters use; made in a running loop."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid
        self.returncode: int | None = None
        self.stdout = None
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(process.sentinel, self._on_end)

    async def wait(self) -> int:
        """Wait for the end; the exit status, or the negative number of the fatal signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError where the process has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self.returncode = self._process.exitcode
        self._ended.set()


def start_server() -> None:
    """Start the server and wait until it has imported its modules."""
    process = _server.Process(target=_do_nothing, daemon=True)
    process.start()
    process.join()


def _do_nothing() -> None:
    pass


async def spawn(
    command: Sequence[str], log: Path | None, *, env: Mapping[str, str] | None = None
) -> ForkedProcess | asyncio.subprocess.Process:
    """As `edgecosine.local.child_processes.spawn`, but a plain command of edgecosine is forked."""
    if log is None or tuple(command[:3]) != _COMMAND:
        return await child_processes.spawn(command, log, env=env)
    environment = {**os.environ, **(env or {})}
    process = _server.Process(target=_run, args=(command[3:], log, environment), daemon=True)
    process.start()
    return ForkedProcess(process)


async def launch(_: str, command: Sequence[str], log: Path, env: Environment) -> ForkedProcess:
    """Start a node of a `LocalCluster`."""
    return await spawn(command, log, env=env)


def forked_cluster(plan: ClusterPlan) -> LocalCluster:
    """A cluster whose nodes are forked."""
    return LocalCluster(plan, print, launch)  # type: ignore[arg-type]


def _run(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    # The server's streams would seek, which a pipe as the log cannot do.
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
    from edgecosine.cli import main

    main([*arguments], prog_name="edgecosine")
