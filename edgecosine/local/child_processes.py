"""Child processes that never outlive their parent, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_STOP_TIMEOUT_S = 8.0
_LAST_BYTES = 64 << 10
_LAST_LINES = 3
_ERROR = "Error: "

_DIE_WITH_PARENT = """
import ctypes, os, pwd, signal, sys
if sys.argv[2]:
    user = pwd.getpwnam(sys.argv[2])
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""PR_SET_PDEATHSIG survives exec, but not a change of user, so the user is changed first. The check
of the parent's pid covers a parent that ended before.

argv: pid of the parent, user or empty, command.
"""


async def spawn(
    command: Sequence[str],
    log: Path | None,
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] = asyncio.subprocess.DEVNULL,
    user: str = "",
) -> asyncio.subprocess.Process:
    """Start a command in its own session, as `user` if one is named.

    Its output is appended to `log`; without `log`, its standard output is a pipe. `env` is added to
    this process's environment; unlike the command line, other users cannot read it.
    """
    wrapped = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), user, *command)
    with contextlib.ExitStack() as stack:
        out = asyncio.subprocess.PIPE if log is None else stack.enter_context(log.open("ab"))
        return await asyncio.create_subprocess_exec(
            *(wrapped if user or sys.platform == "linux" else command),
            stdin=stdin,
            stdout=out,
            stderr=None if log is None else out,
            env=None if env is None else {**os.environ, **env},
            # Ctrl-C in a terminal reaches only the parent, which then stops its children in order.
            start_new_session=True,
        )


async def stop(process: asyncio.subprocess.Process, *, patience_s: float = _STOP_TIMEOUT_S) -> None:
    """Send SIGTERM, and SIGKILL if the process has not ended after `patience_s`."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def ending(code: int) -> str:
    """How a process ended, in words: its exit code or the signal."""
    return (
        f"ended with exit code {code}"
        if code >= 0
        else f"was ended by {signal.Signals(-code).name}"
    )


def last_log_lines(log: Path, count: int = _LAST_LINES) -> str:
    """The error lines of a command's log, else its last `count` lines, as one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return " | ".join(errors or lines[-count:]) or "it left no message"
