"""Engine threads run calls sequentially, off the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgecosine.errors import EngineError
from edgecosine.node.runtime.engine_thread import EngineThread
from tests.node.links.wire_fixtures import run


def test_calls_run_sequentially_in_one_separate_thread() -> None:
    order: list[int] = []

    def call(number: int) -> str:
        order.append(number)
        return threading.current_thread().name

    async def main() -> None:
        with EngineThread("engine") as thread:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(thread.run(lambda number=number: call(number)))  # type: ignore[misc]
                    for number in range(20)
                ]
            names = {task.result() for task in tasks}
        assert names == {"engine"}
        assert order == list(range(20))

    run(main())


def test_begin_of_a_call_is_reported_while_it_runs() -> None:
    leave = threading.Event()

    async def main() -> None:
        begun = asyncio.Event()
        with EngineThread("engine") as thread:
            async with asyncio.TaskGroup() as group:
                call = group.create_task(thread.run(lambda: leave.wait(10), begun.set))
                await begun.wait()
                assert not call.done()
                leave.set()
                assert await call

    run(main())


def test_exception_of_a_call_reaches_its_caller_only() -> None:
    def fail() -> None:
        raise EngineError("no memory")

    async def main() -> None:
        with EngineThread("engine") as thread:
            with pytest.raises(EngineError, match="no memory"):
                await thread.run(fail)
            assert await thread.run(lambda: 7) == 7

    run(main())


def test_cancelled_caller_stops_no_call_and_blocks_no_other() -> None:
    entered, leave, finished = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        entered.set()
        assert leave.wait(10)
        finished.append(1)

    async def main() -> None:
        with EngineThread("engine") as thread:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(thread.run(slow))
                assert await asyncio.to_thread(entered.wait, 10)
                task.cancel()
            assert task.cancelled()
            leave.set()
            assert await thread.run(lambda: list(finished)) == [1]

    run(main())


def test_waiting_calls_are_cancelled_when_the_thread_ends() -> None:
    entered, called = threading.Event(), list[int]()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            with EngineThread("engine") as thread:

                def slow() -> None:
                    entered.set()
                    assert thread.ending.wait(10)

                served = group.create_task(thread.run(slow))
                assert await asyncio.to_thread(entered.wait, 10)
                waiting = group.create_task(thread.run(lambda: called.append(1)))
                await asyncio.sleep(0)
            await asyncio.wait([served, waiting])
        assert not served.cancelled()
        assert waiting.cancelled()
        assert not called
        with pytest.raises(RuntimeError, match="has ended"):
            await thread.run(lambda: 7)

    run(main())
