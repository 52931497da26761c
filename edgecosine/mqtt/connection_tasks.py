"""The tasks of one connection to the broker, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from edgecosine.errors import BrokerLost


class ConnectionTasks:
    """The tasks of one connection, and the first loss of the broker that one of them reports."""

    def __init__(self, name: str) -> None:
        self.is_ending = False
        self.is_announced = asyncio.Event()
        """The announcement is prepared, so received messages may be read."""
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._loss: asyncio.Future[BrokerLost] = asyncio.get_running_loop().create_future()

    def start(
        self, group: asyncio.TaskGroup, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Start a task of the group."""
        task = group.create_task(self._do(work), name=f"{self._name}.mqtt")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def deliver(
        self, group: asyncio.TaskGroup, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Start a task of the group that sends a message and waits for its acknowledgement."""
        task = self.start(group, work)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def finish(self, until: float) -> None:
        """Stop reading and sending, and wait for acknowledgements until `until`.

        A message without acknowledgement would be sent again.
        """
        self.is_ending = True
        for task in self._tasks - self._deliveries:
            task.cancel()
        if self._deliveries:
            now = asyncio.get_running_loop().time()
            await asyncio.wait(self._deliveries, timeout=max(0.0, until - now))

    async def lost(self) -> BrokerLost:
        """Wait until a task reports the loss of the broker."""
        return await self._loss

    def end(self) -> None:
        """End all tasks.

        `is_ending` stops a task that misses its cancellation: aiomqtt waits by `asyncio.wait_for`,
        which drops one that arrives together with its result (fixed in Python 3.12).
        """
        self.is_ending = True
        for task in self._tasks:
            task.cancel()

    async def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except BrokerLost as error:
            if not self._loss.done():
                self._loss.set_result(error)
