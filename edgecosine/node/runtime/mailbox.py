"""A bounded mailbox: each message gets exactly one answer or error.

A message whose sender was cancelled is skipped. When the mailbox closes, all waiting senders get an
error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

import msgspec

from edgecosine.errors import ActorStopped

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Envelope(msgspec.Struct, Generic[Ask, Answer], frozen=True):
    """A message and the future of its answer."""

    message: Ask
    _future: asyncio.Future[Answer]

    @property
    def is_open(self) -> bool:
        """Whether the sender still waits for the answer."""
        return not self._future.done()

    def answer(self, value: Answer) -> None:
        """Send the answer, unless the sender was cancelled."""
        if self.is_open:
            self._future.set_result(value)

    def fail(self, error: Exception) -> None:
        """Send an error instead of an answer."""
        if self.is_open:
            self._future.set_exception(error)


class Mailbox(Generic[Ask, Answer]):
    """Messages for one actor. Admission control limits their number, so a full mailbox is a bug."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._waiting: deque[Envelope[Ask, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Mailbox {self._name} [{len(self._waiting)} waiting]>"

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, message: Ask) -> Answer:
        """Send a message and return its answer.

        Raises ActorStopped if the actor ends before it answers.
        """
        return await self.post(message)

    def post(self, message: Ask) -> asyncio.Future[Answer]:
        """Send a message; returns the future of its answer, as `ask`. Cancelling it takes the
        message back.

        Raises ActorStopped if the actor has ended.
        """
        if self._is_closed:
            raise ActorStopped(f"{self._name} has stopped")
        if len(self._waiting) >= self._size:
            self._waiting = deque(envelope for envelope in self._waiting if envelope.is_open)
        if len(self._waiting) >= self._size:
            raise RuntimeError(f"{self._name}: {self._size} messages wait, more than were admitted")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(Envelope(message, future))
        self._arrived.set()
        return future

    async def take(self, at_most: int) -> list[Envelope[Ask, Answer]]:
        """Wait for a message, and return all that are there, at most `at_most`.

        The caller must answer or fail every envelope.
        """
        while not (taken := self.take_nowait(at_most)):
            self._arrived.clear()
            await self._arrived.wait()
        return taken

    async def arrival(self, within_s: float) -> bool:
        """Wait at most `within_s` seconds for a new message. Returns whether one came."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def take_nowait(self, at_most: int) -> list[Envelope[Ask, Answer]]:
        """Return the waiting messages, at most `at_most`, maybe none."""
        taken: list[Envelope[Ask, Answer]] = []
        while self._waiting and len(taken) < at_most:
            envelope = self._waiting.popleft()
            if envelope.is_open:
                taken.append(envelope)
        return taken

    def close(self) -> None:
        """Refuse new messages and fail those that wait."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().fail(ActorStopped(f"{self._name} has stopped"))
