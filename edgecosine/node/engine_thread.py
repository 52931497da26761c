"""One thread per engine: forward passes never run on the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

Result = TypeVar("Result")


class EngineThread:
    """Runs calls of one engine one after the other, away from the event loop.

    A running pass cannot be cancelled: the caller who leaves drops its result.
    """

    def __init__(self, name: str) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=name
        )

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the thread and wait for its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
