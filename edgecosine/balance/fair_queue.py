"""A fair queue: clients share the target's tokens equally, and priorities shift single jobs.

Start-time fair queueing (Goyal et al., 1996) over clients instead of flows: the tag of a client's
next job is the number of tokens that the client has received, and the lowest tag goes first. A
client that returns starts at the virtual time, so idle time neither earns nor costs tokens.

A step of priority, lower first as in vLLM, shifts a job's tag by `STEP_TOKENS`. It does not change
the tokens that the client is charged. The virtual time grows with every job that starts and passes
every tag in the end, so no client starves, even if others keep changing their client ids.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

STEP_TOKENS: Final = 1024.0
MAX_PRIORITY: Final = 16
"""Priorities beyond this, in either direction, count as this."""
MAX_CLIENTS: Final = 1024
"""Clients beyond it are kept only while they have jobs."""


@dataclass(frozen=True, slots=True, eq=False)
class FairJob:
    """A job for one slot. `cost` is the expected number of tokens, above 0."""

    client_id: str
    cost: float
    priority: int = 0

    @property
    def shift(self) -> float:
        """Shift of the tag by the priority, in tokens."""
        return STEP_TOKENS * max(-MAX_PRIORITY, min(MAX_PRIORITY, self.priority))


@dataclass(slots=True)
class _Client:
    tag: float
    """Tokens received, on the scale of the virtual time."""
    waiting: list[tuple[float, int, FairJob]] = field(default_factory=list)
    """Sorted by tag at arrival, priority included, then by arrival."""
    num_running: int = 0

    @property
    def head(self) -> tuple[float, int]:
        """The tag of the next job, priority included, and its arrival number."""
        _, number, job = self.waiting[0]
        return self.tag + job.shift, number


class FairQueue:
    """Waiting jobs, and the tokens that each client has received."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._numbers = itertools.count()
        self._virtual = 0.0
        self._size = 0

    def __repr__(self) -> str:
        return f"<FairQueue [{self._size} waiting, {len(self._clients)} clients]>"

    def __len__(self) -> int:
        return self._size

    def num_waiting(self, client_id: str) -> int:
        """Number of waiting jobs of one client."""
        client = self._clients.get(client_id)
        return len(client.waiting) if client else 0

    def add(self, job: FairJob) -> None:
        """Add a waiting job."""
        client = self._clients.setdefault(job.client_id, _Client(self._virtual))
        if not client.waiting:
            client.tag = max(client.tag, self._virtual)
        insort(client.waiting, (client.tag + job.shift, next(self._numbers), job))
        self._size += 1

    def discard(self, job: FairJob) -> None:
        """Remove a job, if it waits."""
        client = self._clients.get(job.client_id)
        if client is None:
            return
        kept = [entry for entry in client.waiting if entry[2] is not job]
        self._size -= len(client.waiting) - len(kept)
        client.waiting = kept
        self._forget_idle()

    def pop(self) -> FairJob:
        """Remove and return the first job, which runs until `settle`.

        Raises IndexError if no job waits.
        """
        backlogged = [client for client in self._clients.values() if client.waiting]
        if not backlogged:
            raise IndexError("no job waits")
        client = min(backlogged, key=lambda each: each.head)
        lowest = min(each.tag for each in backlogged)
        _, _, job = client.waiting.pop(0)
        num_active = sum(1 for each in self._clients.values() if each.waiting or each.num_running)
        num_active += not client.waiting and not client.num_running
        self._virtual = max(self._virtual + job.cost / num_active, lowest)
        client.tag += job.cost
        client.num_running += 1
        self._size -= 1
        return job

    def take(self, job: FairJob) -> None:
        """Remove a given job out of order; it runs until `settle`."""
        client = self._clients[job.client_id]
        client.waiting = [entry for entry in client.waiting if entry[2] is not job]
        client.tag += job.cost
        client.num_running += 1
        self._size -= 1

    def settle(self, job: FairJob, cost: float) -> None:
        """End a running job, and charge its client `cost` tokens instead of the expected ones."""
        client = self._clients[job.client_id]
        client.tag += cost - job.cost
        client.num_running -= 1
        self._forget_idle()

    def order(self, more: Iterable[FairJob] = ()) -> list[FairJob]:
        """All waiting jobs in the order of their start, if `more` were added now."""
        lines = {name: (c.tag, list(c.waiting)) for name, c in self._clients.items() if c.waiting}
        for number, job in enumerate(more, start=1 << 62):
            known = self._clients.get(job.client_id)
            fresh = max(known.tag if known else self._virtual, self._virtual)
            tag, waiting = lines.setdefault(job.client_id, (fresh, []))
            insort(waiting, (tag + job.shift, number, job))
        heads = [(tag + line[0][2].shift, line[0][1], tag, line) for tag, line in lines.values()]
        heapq.heapify(heads)
        ordered: list[FairJob] = []
        while heads:
            _, _, tag, line = heads[0]
            _, _, job = line.pop(0)
            ordered.append(job)
            tag += job.cost
            if line:
                heapq.heapreplace(heads, (tag + line[0][2].shift, line[0][1], tag, line))
            else:
                heapq.heappop(heads)
        return ordered

    def _forget_idle(self) -> None:
        """If there are too many clients, drop the idle ones with the lowest tags."""
        if len(self._clients) <= MAX_CLIENTS:
            return
        idle = [
            (client.tag, name)
            for name, client in self._clients.items()
            if not client.waiting and not client.num_running
        ]
        for _, name in sorted(idle)[: (len(idle) + 1) // 2]:
            del self._clients[name]
