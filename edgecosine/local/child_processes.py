"""Child processes that never outlive their parent, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_STOP_TIMEOUT_S = 8.0
_LAST_BYTES = 64 << 10
_LAST_LINES = 3
_ERROR = "Error: "

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""PR_SET_PDEATHSIG survives exec; the check covers a parent that was gone before."""


async def spawn(
    command: Sequence[str], log: Path | None, *, env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start a command in a session of its own, its output going to `log`, or to us without one.

    `env` is added to this process's environment; other users can read a command, but not that.
    """
    wrapped = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command)
    with contextlib.ExitStack() as stack:
        out = asyncio.subprocess.PIPE if log is None else stack.enter_context(log.open("ab"))
        return await asyncio.create_subprocess_exec(
            *(wrapped if sys.platform == "linux" else command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=None if log is None else out,
            env=None if env is None else {**os.environ, **env},
            # Ctrl-C in a terminal reaches the parent alone, which then stops its children in order.
            start_new_session=True,
        )


async def stop(process: asyncio.subprocess.Process, *, patience_s: float = _STOP_TIMEOUT_S) -> None:
    """Ask a process to end, and end it when it does not."""
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
    """How a process ended."""
    return f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def last_words(log: Path) -> str:
    """Why a command of ours ended, of the file that takes its output: its errors, or its last
    lines."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return " | ".join(errors or lines[-_LAST_LINES:]) or "it left no message"
