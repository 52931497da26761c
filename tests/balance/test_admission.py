"""Admission: bounded, by expected completion, and always for requests that start at once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.admission import AdmissionControl, Pace
from edgecosine.balance.fair_queue import FairJob
from edgecosine.errors import Overloaded

TOKEN_S = 0.1


def admission(
    num_slots: int = 1, max_queued: int = 8, per_client: int | None = None
) -> AdmissionControl:
    """Admission at a target of 10 tokens per second and session."""
    made = AdmissionControl(
        num_slots=num_slots, max_queued=max_queued, max_queued_per_client=per_client
    )
    made.pace.observe(100, 100, 100 * TOKEN_S)
    return made


def let_in(
    at: AdmissionControl, job: FairJob, deadline_s: float = math.inf, now: float = 0.0
) -> None:
    """Check and add, as the gateway does."""
    at.check([job], deadline_s, now)
    at.add(job)
    while at.start(now) is not None:
        pass


def refusal(
    at: AdmissionControl, job: FairJob, deadline_s: float = math.inf, now: float = 0.0
) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        at.check([job], deadline_s, now)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    return caught.value


def test_full_queue_refuses_with_the_time_until_a_slot_is_free() -> None:
    at = admission(max_queued=2)
    jobs = [FairJob(name, 50.0) for name in "abc"]
    for job in jobs:
        let_in(at, job)
    assert at.is_full
    said = refusal(at, FairJob("d", 1.0), now=2.0)
    assert said.status == 503
    assert said.retry_after_s == pytest.approx(50 * TOKEN_S - 2)
    at.leave(jobs[0], 3.0, 50)
    at.start(3.0)
    let_in(at, FairJob("d", 1.0), now=3.0)


def test_one_client_cannot_fill_the_queue() -> None:
    at = admission(max_queued=4)
    for _ in range(3):
        let_in(at, FairJob("hog", 10.0))
    assert refusal(at, FairJob("hog", 10.0)).status == 429
    let_in(at, FairJob("other", 10.0))


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), max_size=8),
    st.integers(1, 3),
    st.floats(0.1, 60.0),
)
def test_deadline_is_compared_with_the_expected_completion(
    ahead: list[tuple[str, int]], num_slots: int, deadline_s: float
) -> None:
    """A request is admitted if it starts at once or, in a run as expected, ends in time."""
    at = admission(num_slots, max_queued=20, per_client=20)
    for client, cost in ahead:
        let_in(at, FairJob(client, float(cost)))
    mine, starts_at_once = FairJob("me", 30.0), at.num_running < num_slots
    try:
        at.check([mine], deadline_s, 0.0)
        is_admitted = True
    except Overloaded:
        is_admitted = False
    at.add(mine)
    ended_s = run(at, mine)
    is_in_time = ended_s <= deadline_s + 1e-9
    assert is_admitted == (is_in_time or starts_at_once)


def run(at: AdmissionControl, mine: FairJob) -> float:
    """Run until `mine` has ended, with costs as expected."""
    ends = {job: job.cost * TOKEN_S for job in at.running}
    now = 0.0
    while True:
        while (job := at.start(now)) is not None:
            ends[job] = now + job.cost * TOKEN_S
        job = min(ends, key=lambda each: ends[each])
        now = ends.pop(job)
        at.leave(job, now, round(job.cost))
        if job is mine:
            return now


def test_request_that_starts_at_once_is_admitted_at_any_pace() -> None:
    at = admission()
    at.pace.observe(1, 100, 1e6)
    let_in(at, FairJob("a", 100.0), deadline_s=0.1)
    assert refusal(at, FairJob("b", 100.0), deadline_s=0.1).retry_after_s == 60.0


def test_before_the_first_answer_only_room_counts() -> None:
    at = AdmissionControl(num_slots=1, max_queued=1)
    let_in(at, FairJob("a", 1e9))
    let_in(at, FairJob("b", 1e9), deadline_s=0.001)
    assert refusal(at, FairJob("c", 1.0)).retry_after_s == 1.0


def test_choices_need_room_together() -> None:
    at = admission(num_slots=3, max_queued=2, per_client=2)
    at.check([FairJob("a", 1.0)] * 5, math.inf, 0.0)
    with pytest.raises(Overloaded):
        at.check([FairJob("a", 1.0) for _ in range(6)], math.inf, 0.0)


@given(st.integers(1, 4), st.lists(st.sampled_from(["come", "end", "give up"]), max_size=40))
def test_slots_are_never_idle_while_jobs_wait_nor_taken_twice(
    num_slots: int, events: list[str]
) -> None:
    at = admission(num_slots, max_queued=5)
    inside: list[FairJob] = []
    for number, event in enumerate(events):
        if event == "come":
            job = FairJob(f"c{number % 3}", 10.0)
            try:
                let_in(at, job, now=number)
                inside.append(job)
            except Overloaded:
                assert at.num_queued > 0
        elif inside:
            job = inside.pop(0 if event == "end" else -1)
            at.leave(job, number, 10 if event == "end" else None)
            at.leave(job, number)
            at.start(number)
        assert at.num_running == min(num_slots, len(inside))
        assert at.num_queued == len(inside) - at.num_running <= 5


@given(st.lists(st.integers(1, 100), min_size=20, max_size=40), st.floats(0.001, 1.0))
def test_pace_is_learned(lengths: list[int], token_s: float) -> None:
    pace = Pace()
    assert (pace.token_s, pace.tokens(200)) == (0.0, 200.0)
    for length in lengths:
        pace.observe(length, 200, length * token_s)
    assert pace.token_s == pytest.approx(token_s)
    assert min(lengths) <= pace.tokens(200) <= max(lengths)


def test_pace_fades() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(100, 100, 100.0)
    for _ in range(50):
        pace.observe(100, 100, 1.0)
    assert pace.token_s == pytest.approx(0.01, rel=0.6)
