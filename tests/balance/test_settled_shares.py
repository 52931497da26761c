"""Shares over time: idle time earns nothing, unused tokens are credited, and a request is judged by
the last of its choices."""

from __future__ import annotations

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.balance.fair_queue import FairJob, FairQueue
from edgecosine.errors import Overloaded


def served(queue: FairQueue, count: int) -> list[str]:
    """The clients of the next jobs, which cost as expected."""
    names = []
    for _ in range(count):
        job = queue.pop()
        queue.settle(job, job.cost)
        names.append(job.client_id)
    return names


def test_idle_client_earns_no_tokens() -> None:
    queue = FairQueue()
    queue.add(FairJob("away", 10.0))
    served(queue, 1)
    for _ in range(60):
        queue.add(FairJob("busy", 10.0))
    served(queue, 40)
    for _ in range(10):
        queue.add(FairJob("away", 10.0))
    names = served(queue, 10)
    assert abs(names.count("away") - names.count("busy")) <= 2


def test_unused_tokens_are_credited() -> None:
    """Both clients expect 100 tokens per job, and one uses 10."""
    queue = FairQueue()
    for _ in range(40):
        queue.add(FairJob("short", 100.0))
        queue.add(FairJob("long", 100.0))
    used = {"short": 0.0, "long": 0.0}
    for _ in range(40):
        job = queue.pop()
        cost = 10.0 if job.client_id == "short" else 100.0
        used[job.client_id] += cost
        queue.settle(job, cost)
    assert used["long"] <= 2 * used["short"] + 100.0


@pytest.mark.parametrize(("deadline_s", "is_admitted"), [(1.5, False), (2.5, True)])
def test_request_is_judged_by_the_last_of_its_choices(
    deadline_s: float, *, is_admitted: bool
) -> None:
    """One slot at ten tokens per second: the first of two choices would end after a second."""
    admission = AdmissionControl(num_slots=1, max_queued=8)
    admission.pace.observe(100, 100, 10.0)
    choices = [FairJob("a", 10.0), FairJob("a", 10.0)]
    if is_admitted:
        admission.check(choices, deadline_s, 0.0)
    else:
        with pytest.raises(Overloaded, match="deadline"):
            admission.check(choices, deadline_s, 0.0)
