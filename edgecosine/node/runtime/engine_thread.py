"""One thread per engine, so that forward passes never run on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

Result = TypeVar("Result")


class _Call(msgspec.Struct, frozen=True):
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]
    on_begin: Callable[[], None] | None


class EngineThread:
    """Runs calls of one engine in a thread, one after another.

    A running call cannot be cancelled; if its caller is cancelled, the result is dropped. A call
    that has not started is skipped if its caller is cancelled or the thread ends. An executor of
    the standard library would cost each round its futures and locks.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.ending = threading.Event()
        """Set when no further call will start."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(
        self, function: Callable[[], Result], on_begin: Callable[[], None] | None = None
    ) -> Result:
        """Run `function` in the thread and return its result. `on_begin` is called in the event
        loop when it has begun.

        Raises the exception of `function`; RuntimeError if the thread has ended.
        """
        if self.ending.is_set():
            raise RuntimeError("the engine's thread has ended")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._calls.put(_Call(function, loop, result, on_begin))
        return await result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ending.set()
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if not call.result.done():
                self._execute(call)
            del call  # frees its arguments before the next call comes

    def _execute(self, call: _Call) -> None:
        result: Any = None
        error: BaseException | None = asyncio.CancelledError() if self.ending.is_set() else None
        if error is None:
            try:
                if call.on_begin is not None:
                    call.loop.call_soon_threadsafe(call.on_begin)
                result = call.function()
            except BaseException as raised:  # noqa: BLE001 -- the caller gets it
                error = raised
        # The event loop may have ended.
        with contextlib.suppress(RuntimeError):
            call.loop.call_soon_threadsafe(_settle, call.result, result, error)


def has_spare_core() -> bool:
    """Whether this process may use a second core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, asyncio.CancelledError):
        future.cancel()
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("the call raised StopIteration"))  # futures refuse it
    else:
        future.set_exception(error)
