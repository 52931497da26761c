"""A child process that answers orders: a JSON object per line each way, over standard streams.

The child ends when its input ends. Every failure of the exchange is a LabError with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from edgecosine.errors import LabError
from edgecosine.local import child_processes as processes

MAX_LINE_BYTES = 1 << 22
REPLY_TIMEOUT_S = 900.0

Value = TypeVar("Value")


def pinned(command: Sequence[str], cores: str) -> tuple[str, ...]:
    """The command, restricted to the cores of a list like 0,2-3; an empty list allows all cores."""
    return ("taskset", "--cpu-list", cores, *command) if cores else tuple(command)


class LineProcess:
    """The parent's side; answers one order at a time. `name` is the child's name in errors."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    async def ask(self, order: msgspec.Struct, kind: type[Value]) -> Value:
        """Send one order and wait for its reply.

        Raises LabError when the child ends, sends an invalid reply, or none in 900 s.
        """
        assert self._process.stdin is not None
        async with self._turn:
            # A child that has ended is noticed by its missing reply.
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")
                await self._process.stdin.drain()
            return await self.read(kind)

    async def read(self, kind: type[Value]) -> Value:
        """Wait for the next line.

        Raises LabError as `ask` does.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                line = await self._process.stdout.readline()
                if not line:
                    code: Any = await self._process.wait()
                    raise LabError(
                        f"{self.name} ended with exit code {code}; its last output is above"
                    )
                return msgspec.json.decode(line, type=kind)
        except TimeoutError:
            raise LabError(f"{self.name} sent no reply in {REPLY_TIMEOUT_S:.0f} s") from None
        except msgspec.MsgspecError as error:
            raise LabError(f"{self.name} sent an invalid reply: {error}") from error
        except ValueError as error:
            raise LabError(f"{self.name} sent a line of over {MAX_LINE_BYTES} bytes") from error


@asynccontextmanager
async def line_process(
    name: str, command: Sequence[str], cores: str = "", *, descriptors: Sequence[int] = ()
) -> AsyncIterator[LineProcess]:
    """Start the command on these cores; it also inherits the open `descriptors`.

    The process ends with the block.
    """
    process = await asyncio.create_subprocess_exec(
        *pinned(command, cores),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        pass_fds=descriptors,
        start_new_session=True,
    )
    try:
        yield LineProcess(name, process)
    finally:
        await processes.stop(process)
