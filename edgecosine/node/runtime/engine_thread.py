"""One thread per engine: forward passes never run on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Order:
    call: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class EngineThread:
    """Runs calls of one engine one after the other, away from the event loop.

    A running pass cannot be cancelled: the caller who leaves drops its result. What has not begun
    is left out when its caller has left, or when the thread ends. It is no executor of the standard
    library, whose futures and locks every round would pay for.
    """

    def __init__(self, name: str) -> None:
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self.ending = threading.Event()
        """Set when no more calls begin."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the thread and wait for its result.

        Raises whatever `call` does.
        """
        if self.ending.is_set():
            raise RuntimeError("the engine's thread has ended")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        self._orders.put(_Order(call, loop, answer))
        return await answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ending.set()
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            if not order.answer.done():
                self._follow(order)
            del order  # what was asked for is not kept until somebody asks again

    def _follow(self, order: _Order) -> None:
        result: Any = None
        error: BaseException | None = asyncio.CancelledError() if self.ending.is_set() else None
        if error is None:
            try:
                result = order.call()
            except BaseException as raised:  # noqa: BLE001 -- it is the caller's
                error = raised
        # Of a loop that has ended nobody waits.
        with contextlib.suppress(RuntimeError):
            order.loop.call_soon_threadsafe(_settle, order.answer, result, error)


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    elif isinstance(error, asyncio.CancelledError):
        answer.cancel()
    elif isinstance(error, StopIteration):
        answer.set_exception(RuntimeError("the call raised StopIteration"))  # no future takes it
    else:
        answer.set_exception(error)
