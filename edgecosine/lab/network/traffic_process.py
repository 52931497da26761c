"""The process that carries the lab's traffic, as its owner sees it: a hub or a relay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from edgecosine.errors import LabError
from edgecosine.lab.network.traffic_messages import TrafficOrder, write_order
from edgecosine.local import child_processes as processes


class Carrier:
    """A started hub or relay. Orders are answered one by one; `stop` ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, command: Sequence[str], descriptors: Sequence[int] = ()) -> Carrier:
        """Run `command`, which also inherits the open `descriptors`.

        It ends with its input, so that it never outlives us.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,
        )
        return cls(process)

    async def tell(self, order: TrafficOrder) -> dict[str, Any]:
        """Give one order and wait until it is carried out.

        Raises LabError.
        """
        to, out = self._process.stdin, self._process.stdout
        assert to is not None
        assert out is not None
        async with self._turn:
            line = b""
            if not to.is_closing():
                to.write(write_order(order))
                line = await out.readline()
        if not line:
            raise LabError("the process that carries the lab's traffic has ended")
        answer: dict[str, Any] = msgspec.json.decode(line)
        if "error" in answer:
            raise LabError(str(answer["error"]))
        return answer

    async def stop(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await processes.stop(self._process)
