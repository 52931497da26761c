"""Many drafters: requests compare a few of them, and plain rounds none."""

from __future__ import annotations

import itertools

import pytest

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.drafter_table import RANKED_FOR, SHORTLIST
from edgecosine.balance.planner import Planner
from edgecosine.balance.probes import PROBE_EVERY, RESTING_PACE

PASS_S = 0.03
NAMES = [f"d{number:03}" for number in range(300)]


@pytest.fixture
def made() -> Planner:
    """A planner that has measured 30 ms for any pass, with 300 linked drafters."""
    made = Planner()
    for rows in (1, 64):
        made.statistics.observe_pass(PassReport(rows, PASS_S))
    for name in NAMES:
        made.statistics.add_link(name)
    return made


def rank_again(made: Planner) -> None:
    for _ in range(RANKED_FOR):
        made.statistics.count_plan()


def test_few_drafters_are_all_compared(made: Planner) -> None:
    request = made.statistics.open("edgecosine")
    assert made.statistics.shortlist(request, NAMES[:SHORTLIST]) == NAMES[:SHORTLIST]
    assert len(made.statistics.shortlist(request, NAMES)) == SHORTLIST


def test_shortlists_hold_the_best_drafters_and_by_turns_all_unknown_ones(made: Planner) -> None:
    best = NAMES[150:153]
    for name in best:
        made.statistics.drafter(name).record.rate.observe(90, 10)
    seen: set[str] = set()
    for _ in range(200):
        request = made.statistics.open("edgecosine")
        names = made.statistics.shortlist(request, NAMES)
        assert set(best) <= set(names)
        for name in names:
            made.statistics.drafter(name).record.rate.observe(0, 1)
        seen |= set(names)
        rank_again(made)
    assert seen == set(NAMES)


def test_shortlist_has_no_resting_and_no_ended_drafters(made: Planner) -> None:
    request = made.statistics.open("edgecosine")
    made.statistics.drafter("d200").record.rate.observe(90, 10)
    made.statistics.drafter("d200").back_at = 1 << 30
    made.statistics.drafter("d000").back_at = 1 << 30
    made.statistics.remove_link("d001")
    names = made.statistics.shortlist(request, NAMES[2:])
    assert not {"d000", "d001"} & set(names)
    assert "d200" not in made.plan(request, names, 100).drafters


def test_rounds_are_plain_without_a_look_at_drafters_until_a_probe_is_due(made: Planner) -> None:
    requests = [made.statistics.open("edgecosine") for _ in range(4)]
    assert not made.is_plain(requests[0])
    for _ in range(100):
        if not made.statistics.speculates(requests[0]):
            break
        made.statistics.observe_pass(PassReport(8, PASS_S, 1.0, 4))
    num_plain = sum(1 for _ in itertools.takewhile(made.is_plain, itertools.repeat(requests[0])))
    assert num_plain == PROBE_EVERY * RESTING_PACE * len(requests) - 1
    assert "4 requests" in made.last_reason
    assert not made.plan(requests[0], NAMES[:4], 100).drafters
    assert made.probe(requests[0], NAMES[:4], made.plan(requests[0], NAMES[:4], 100)).drafters
    assert made.is_plain(requests[0])


def test_rounds_of_the_target_alone_are_always_plain(made: Planner) -> None:
    request = made.statistics.open("target-alone")
    assert all(made.of(request).is_plain(request) for _ in range(1000))
    assert made.statistics.why_plain(request.policy) == "K=0: target-alone"


def test_co_batched_requests_are_counted_as_they_come_and_go(made: Planner) -> None:
    first, second = (made.statistics.open("edgecosine") for _ in range(2))
    made.statistics.set_size(second, 5, 3.5)
    assert made.statistics.co_batched(first).rows == 5
    assert made.statistics.co_batched(first).tokens == pytest.approx(3.5)
    made.statistics.close(second)
    assert made.statistics.co_batched(first).rows == 0
