"""The fair queue: work-conserving, fair to clients, without starvation."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.fair_queue import MAX_CLIENTS, MAX_PRIORITY, STEP_TOKENS, FairJob, FairQueue

COSTS = st.integers(1, 512).map(float)
JOBS = st.builds(FairJob, st.sampled_from("abcd"), COSTS, st.integers(-20, 20))


@st.composite
def histories(draw: st.DrawFn) -> list[FairJob | str]:
    """Arrivals, with starts and ends in between."""
    return draw(st.lists(st.one_of(JOBS, st.sampled_from(["turn", "end"])), max_size=60))


def play(history: list[FairJob | str]) -> tuple[FairQueue, list[FairJob], list[FairJob]]:
    """A queue after a history, its waiting jobs and its running ones."""
    queue, waiting, running = FairQueue(), [], []
    for event in history:
        if isinstance(event, FairJob):
            queue.add(event)
            waiting.append(event)
        elif event == "turn" and waiting:
            job = queue.pop()
            waiting.remove(job)
            running.append(job)
        elif event == "end" and running:
            job = running.pop(0)
            queue.settle(job, job.cost / 2)
        assert len(queue) == len(waiting)
    return queue, waiting, running


@given(histories())
def test_every_job_starts_once(history: list[FairJob | str]) -> None:
    queue, waiting, _ = play(history)
    popped = [queue.pop() for _ in waiting]
    assert Counter(popped) == Counter(waiting)
    assert len(queue) == 0


@given(histories(), st.lists(JOBS, max_size=5).filter(lambda jobs: len({*jobs}) == len(jobs)))
def test_order_predicts_the_starts(history: list[FairJob | str], more: list[FairJob]) -> None:
    queue, waiting, _ = play(history)
    top1_matches = queue.order(more)
    for job in more:
        queue.add(job)
    assert [queue.pop() for _ in [*waiting, *more]] == top1_matches


@given(histories())
def test_removed_job_never_starts(history: list[FairJob | str]) -> None:
    queue, waiting, _ = play(history)
    for leaver in waiting[::3]:
        queue.discard(leaver)
        queue.discard(leaver)
    left = {*waiting[::3]}
    popped = [queue.pop() for _ in range(len(queue))]
    assert Counter(popped) == Counter(job for job in waiting if job not in left)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(COSTS, min_size=1, max_size=30), min_size=2)
)
def test_busy_clients_get_equal_shares(wants: dict[str, list[float]]) -> None:
    """Shares differ by at most one job while all clients wait."""
    queue = FairQueue()
    for client, costs in wants.items():
        for cost in costs:
            queue.add(FairJob(client, cost))
    dearest = max(max(costs) for costs in wants.values())
    given_: defaultdict[str, float] = defaultdict(float)
    while all(queue.num_waiting(client) for client in wants):
        job = queue.pop()
        given_[job.client_id] += job.cost
        shares = [given_[client] for client in wants]
        assert max(shares) - min(shares) <= dearest


@given(st.integers(1, 40), st.integers(1, 20))
def test_new_client_starts_before_the_queue_of_a_busy_one(num_hogged: int, num_before: int) -> None:
    queue = FairQueue()
    for _ in range(num_hogged + num_before):
        queue.add(FairJob("hog", 100.0))
    for _ in range(num_before):
        queue.settle(queue.pop(), 100.0)
    mine = FairJob("light", 10.0)
    queue.add(mine)
    assert mine in (queue.pop(), queue.pop())


@given(st.integers(-MAX_PRIORITY, MAX_PRIORITY - 1), COSTS, COSTS)
def test_lower_priority_number_goes_first(priority: int, cost: float, other: float) -> None:
    for names in ("aa", "ab"):
        queue = FairQueue()
        later, first = FairJob(names[0], cost, priority + 1), FairJob(names[1], other, priority)
        queue.add(later)
        queue.add(first)
        assert [queue.pop(), queue.pop()] == [first, later]


@given(
    st.integers(-1000, 1000),
    st.lists(st.tuples(COSTS, st.integers(-1000, 0)), min_size=1, max_size=8),
    st.booleans(),
)
def test_no_job_starves(
    priority: int, newcomers: list[tuple[float, int]], is_under_new_names: bool
) -> None:
    """Before each start new jobs arrive, of any priority and maybe of new clients; a waiting job
    still starts within a bounded time."""
    queue = FairQueue()
    mine = FairJob("patient", 1.0, priority)
    queue.add(mine)
    cheapest = min(cost for cost, _ in newcomers)
    num_active = len(newcomers) + 2
    # Each start moves the virtual time by its cost over the clients with jobs.
    bound = 2 * MAX_PRIORITY * STEP_TOKENS * num_active / cheapest + num_active
    step = max(1.0, bound / 400)
    popped = 0
    while True:
        while len(queue) < num_active:
            cost, urgency = newcomers[popped % len(newcomers)]
            name = f"n{popped}-{len(queue)}" if is_under_new_names else "same"
            queue.add(FairJob(name, cost * step, urgency))
        job = queue.pop()
        if job is mine:
            break
        queue.settle(job, job.cost)
        popped += 1
        assert popped <= bound / step + 2 * num_active


def test_memory_is_bounded_under_new_client_ids() -> None:
    queue = FairQueue()
    for name in range(3 * MAX_CLIENTS):
        queue.add(FairJob(str(name), 1.0))
        queue.settle(queue.pop(), 1000.0 * (1 + name % 7))
        assert int(repr(queue).split()[-2]) <= MAX_CLIENTS + 1
