"""Virtual time for asyncio code: ordered events, shared processors and busy event loops.

The actors of all nodes run in one `VirtualLoop`. Each node's callbacks belong to its `Strand`,
which models that node's event loop: it runs one callback at a time, in order, and the cost that a
callback declares (`charge`) passes before the next one begins. Strands and engines take their time
from a `Core`, whose jobs share it evenly. Time passes only from event to event, so that results are
independent of the simulating machine's speed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from edgecosine.errors import LabError
from edgecosine.node.runtime.clock import clock

Result = TypeVar("Result")
Event = Callable[[], object]

_strand: contextvars.ContextVar[Strand] = contextvars.ContextVar("strand")


class Core:
    """A processor whose jobs share it evenly, as under a fair scheduler."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._jobs: dict[int, tuple[float, Event]] = {}
        """Seconds that each job needed alone at the time `_since`, and its callback."""
        self._since = 0.0
        self._number = itertools.count()
        self._version = 0
        self.busy_s = 0.0

    def run(self, seconds: float, done: Event) -> None:
        """Use this processor for `seconds`, then call `done`."""
        self._advance()
        self._jobs[next(self._number)] = seconds, done
        self._schedule()

    @property
    def used_s(self) -> float:
        """Seconds in which this processor was busy until now."""
        self._advance()
        return self.busy_s

    async def spend(self, seconds: float) -> None:
        """Wait until this processor was used for `seconds`."""
        had: asyncio.Future[None] = self._loop.create_future()
        self.run(seconds, lambda: None if had.done() else had.set_result(None))
        await had

    def _advance(self) -> None:
        now = self._loop.event_time
        if self._jobs:
            self.busy_s += now - self._since
            each = (now - self._since) / len(self._jobs)
            self._jobs = {job: (left - each, done) for job, (left, done) in self._jobs.items()}
        self._since = now

    def _schedule(self) -> None:
        self._version += 1
        if self._jobs:
            version = self._version
            least = min(left for left, _ in self._jobs.values())
            at = self._since + max(0.0, least) * len(self._jobs)
            self._loop.at(at, lambda: self._complete(version))

    def _complete(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        first = min(self._jobs, key=lambda job: (self._jobs[job][0], job))
        _, done = self._jobs.pop(first)
        self._schedule()
        done()


class Strand:
    """One node's event loop."""

    def __init__(self, loop: VirtualLoop, name: str, core: Core | None = None) -> None:
        self._loop, self.name, self._core = loop, name, core
        self._queue: deque[Event] = deque()
        self._is_busy = False
        self.charged = 0.0
        """Cost of the running callback so far."""
        self.busy_s = 0.0
        self._context = contextvars.copy_context()
        self._context.run(_strand.set, self)
        self._context.run(clock.set, loop.time)

    def __repr__(self) -> str:
        return f"<Strand {self.name} [{len(self._queue)} waiting]>"

    @property
    def context(self) -> contextvars.Context:
        """A context whose callbacks and tasks run on this strand."""
        return self._context.copy()

    def charge(self, seconds: float) -> None:
        """Add a cost to the running callback."""
        self.charged += seconds

    async def pause(self, seconds: float) -> None:
        """Wait on this strand without using its time."""
        ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.at(
            self._loop.time() + seconds, lambda: None if ended.done() else ended.set_result(None)
        )
        await ended

    async def serve(self, seconds: float) -> None:
        """Wait until this strand has run for `seconds`, after its earlier callbacks."""
        served: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._serve, seconds, served, context=self.context)
        await served

    def _serve(self, seconds: float, served: asyncio.Future[None]) -> None:
        self.charge(seconds)
        self._queue.appendleft(lambda: None if served.done() else served.set_result(None))

    def take(self, call: Event) -> None:
        """Queue a callback that is due."""
        self._queue.append(call)
        if not self._is_busy:
            self._go_on()

    def _go_on(self) -> None:
        self._is_busy = True
        while self._queue:
            call = self._queue.popleft()
            self.charged = 0.0
            self._loop.running = self
            call()
            self._loop.running = None
            if self.charged > 0.0:
                spent, self.charged = self.charged, 0.0
                self.busy_s += spent
                self._pass(spent)
                return
        self._is_busy = False

    def _pass(self, seconds: float) -> None:
        if self._core is None:
            self._loop.at(self._loop.event_time + seconds, self._go_on)
        else:
            self._core.run(seconds, self._go_on)


class VirtualLoop:
    """An event loop whose time passes only from event to event.

    It implements only what asyncio's tasks, futures, task groups and time-outs need of a loop.
    """

    def __init__(self) -> None:
        self.event_time = 0.0
        """Time of the current event, in seconds."""
        self.running: Strand | None = None
        self._events: list[tuple[float, int, Event]] = []
        self._number = itertools.count()
        self._failure: BaseException | None = None
        self._outside = Strand(self, "outside")

    @property
    def _as_loop(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)

    def time(self) -> float:
        """Virtual seconds, including the cost of the running callback so far."""
        return self.event_time + (self.running.charged if self.running else 0.0)

    def at(self, when: float, event: Event) -> None:
        """Schedule an event."""
        if when < self.event_time:
            raise LabError(f"an event at {when} s comes too late at {self.event_time} s")
        heapq.heappush(self._events, (when, next(self._number), event))

    def complete(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Run `main` outside of all strands until it ends, possibly inside of a running real loop.

        Raises what `main` raises, and LabError when no event is left.
        """
        around = asyncio._get_running_loop()
        asyncio._set_running_loop(self._as_loop)
        try:
            task = self._outside.context.run(self.create_task, main)
            while not task.done():
                if not self._events:
                    raise LabError("the simulation waits for something that never happens")
                self.event_time, _, event = heapq.heappop(self._events)
                event()
                if self._failure is not None:
                    raise self._failure
            return task.result()
        finally:
            asyncio._set_running_loop(around)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a time, on the strand of the context."""
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self._as_loop, context)
        strand = context.get(_strand, self._outside)

        def call() -> None:
            if not handle.cancelled():
                context.run(callback, *args)

        self.at(max(when, self.event_time), lambda: strand.take(call))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call after a delay."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call as soon as the strand is free."""
        return self.call_at(self.time(), callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future of this loop."""
        return asyncio.Future(loop=self._as_loop)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Result],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Result]:
        """Create a task of this loop."""
        return asyncio.Task(coro, loop=self._as_loop, name=name, context=context)

    def get_debug(self) -> bool:
        """Always False."""
        return False

    def is_running(self) -> bool:
        """Whether this is the running loop."""
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the simulation after an exception in a callback."""
        error = context.get("exception")
        self._failure = error or LabError(str(context.get("message")))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Ignore it: a cancelled handle stays in the heap and is skipped when it is due."""
