"""Admission control: refuses requests that would wait too long, and starts the others in order.

A request is refused at once if the queue is full, if its client's share of the queue is used up, or
if it would end after its deadline by the jobs ahead of it and the measured pace. A request that can
start at once is always admitted, so that a wrong estimate of the pace is corrected.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from edgecosine.balance.fair_queue import FairJob, FairQueue
from edgecosine.errors import Overloaded

_FORGETTING = 0.9
"""Weight of earlier answers at each new one."""
_FIRST_GUESS_S = 1.0
_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 60.0
_TOO_MANY = 429
_SHORTEST_JOB = 1.0


class Pace:
    """Time per token of a session, and the share of its token limit that an answer uses.

    Both are ratios of sums with a fading memory, so that long answers weigh more than short ones.
    """

    def __init__(self) -> None:
        self._seconds = self._tokens = self._allowed = 0.0

    def __repr__(self) -> str:
        return f"<Pace {self.token_s:.4f} s a token>"

    @property
    def token_s(self) -> float:
        """Seconds per token of one session, prefill included; 0 before the first answer."""
        return self._seconds / self._tokens if self._tokens else 0.0

    def observe(self, num_tokens: int, max_tokens: int, elapsed_s: float) -> None:
        """Learn from an answer of `num_tokens` of at most `max_tokens` in `elapsed_s` seconds."""
        self._seconds = _FORGETTING * self._seconds + elapsed_s
        self._tokens = _FORGETTING * self._tokens + max(1, num_tokens)
        self._allowed = _FORGETTING * self._allowed + max_tokens

    def tokens(self, max_tokens: int) -> float:
        """Expected tokens of an answer of at most `max_tokens`."""
        share = min(1.0, self._tokens / self._allowed) if self._allowed else 1.0
        return max(_SHORTEST_JOB, share * max_tokens)


class AdmissionControl:
    """Session slots and the queue for them. `now` is in seconds of any monotonic clock."""

    def __init__(
        self, *, num_slots: int, max_queued: int, max_queued_per_client: int | None = None
    ) -> None:
        self._num_slots, self._max_queued = num_slots, max_queued
        # By default one client may fill half of the queue.
        half = -(-max_queued // 2)
        self.max_queued_per_client = (
            half if max_queued_per_client is None else max_queued_per_client
        )
        self._queue = FairQueue()
        self._since: dict[FairJob, float] = {}
        """Start of each running job."""
        self.pace = Pace()

    def __repr__(self) -> str:
        return f"<AdmissionControl [{len(self._since)} running, {len(self._queue)} queued]>"

    @property
    def num_queued(self) -> int:
        """Number of jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> tuple[FairJob, ...]:
        """Jobs that have a slot."""
        return tuple(self._since)

    @property
    def num_running(self) -> int:
        """Number of jobs that have a slot."""
        return len(self._since)

    @property
    def is_full(self) -> bool:
        """Whether all slots and the queue are full."""
        return self.num_queued >= self._max_queued and self.num_running >= self._num_slots

    def check(self, jobs: Sequence[FairJob], deadline_s: float, now: float) -> None:
        """Check that a request of one client, each choice a job, may be admitted.

        Raises Overloaded, with the seconds after which to retry.
        """
        num_free = max(0, self._num_slots - len(self._since) - len(self._queue))
        num_waiting = len(jobs) - num_free
        if num_waiting <= 0:
            return
        if len(self._queue) + num_waiting > self._max_queued:
            raise Overloaded(_retry_s(self._next_place_s(now)))
        if self._queue.num_waiting(jobs[0].client_id) + num_waiting > self.max_queued_per_client:
            raise Overloaded(
                _retry_s(self._next_place_s(now)),
                f"this client's share of the queue, {self.max_queued_per_client}, is used up",
                status=_TOO_MANY,
            )
        late_s = self._completion_s(jobs, now) - deadline_s
        if late_s > 0:
            raise Overloaded(
                _retry_s(late_s), "the answer is not expected before the request's deadline"
            )

    def add(self, job: FairJob) -> None:
        """Add a job to the queue, without a check: it was checked, now or before a restart."""
        self._queue.add(job)

    def start(self, now: float) -> FairJob | None:
        """Start the first job of the queue and return it; None if no job can start."""
        if len(self._since) >= self._num_slots or not self._queue:
            return None
        job = self._queue.pop()
        self._since[job] = now
        return job

    def take(self, job: FairJob, now: float) -> None:
        """Start a given job of the queue, out of order."""
        self._queue.take(job)
        self._since[job] = now

    def leave(self, job: FairJob, now: float, num_tokens: int | None = None) -> None:
        """Remove a waiting job, or end a running one after `num_tokens` tokens (None: unknown)."""
        since = self._since.pop(job, None)
        if since is None:
            self._queue.discard(job)
            return
        if num_tokens is None:
            token_s = self.pace.token_s
            made = (now - since) / token_s if token_s else job.cost
            num_tokens = math.ceil(min(made, job.cost))
        self._queue.settle(job, num_tokens)

    def _next_place_s(self, now: float) -> float:
        if not self.pace.token_s:
            return _FIRST_GUESS_S
        return min((self._remaining_s(job, now) for job in self._since), default=0.0)

    def _completion_s(self, jobs: Sequence[FairJob], now: float) -> float:
        """Expected seconds until the last of `jobs` ends."""
        ends = [self._remaining_s(job, now) for job in self._since]
        ends += [0.0] * (self._num_slots - len(ends))
        heapq.heapify(ends)
        wanted, completion_s = set(jobs), 0.0
        for job in self._queue.order(jobs):
            end_s = ends[0] + job.cost * self.pace.token_s
            heapq.heapreplace(ends, end_s)
            if job in wanted:
                wanted.discard(job)
                completion_s = max(completion_s, end_s)
                if not wanted:
                    break
        return completion_s

    def _remaining_s(self, job: FairJob, now: float) -> float:
        return max(0.0, job.cost * self.pace.token_s - (now - self._since[job]))


def _retry_s(retry_s: float) -> float:
    return round(min(max(retry_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S), 3)
