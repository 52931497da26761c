"""Plans: the most tokens per second, with a reason."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgecosine.balance.plan import (
    DEADLINE_FLOOR_S,
    LONGEST_DEADLINE_S,
    MAX_GAMMA,
    PROBE_GAMMA,
    Candidate,
    CoBatchedRequests,
    choose_plan,
    deadline,
    expected_tokens,
    probe_plan,
    worthwhile_nodes,
)

MEMORY_BOUND = [0.03 * (1 + 0.01 * rows) for rows in range(26)]
"""A pass costs nearly the same for any number of rows, as with most real targets."""

rates = st.floats(0, 1)
seconds = st.floats(0, 1)
batches = st.builds(
    CoBatchedRequests, requests=st.integers(0, 8), rows=st.integers(0, 40), tokens=st.floats(0, 30)
)
passes = st.lists(st.floats(0.001, 1), min_size=26, max_size=26).map(sorted)


def candidate(node_id: str = "d", rate: float = 0.7, **changes: float) -> Candidate:
    """A quick, measured drafter."""
    costs = {"token_s": 0.001, "overhead_s": 0.002} | changes
    return Candidate(node_id=node_id, rate=rate, evidence=50.0, is_measured=True, **costs)


candidates = st.builds(
    Candidate,
    node_id=st.sampled_from("abcd"),
    rate=rates,
    evidence=st.floats(0, 100),
    token_s=seconds,
    overhead_s=seconds,
    is_measured=st.booleans(),
)


@given(rates, st.integers(0, MAX_GAMMA))
def test_expected_tokens_are_the_sum_over_accepted_lengths(rate: float, gamma: int) -> None:
    by_sum = sum(rate**length for length in range(gamma + 1))
    assert expected_tokens(rate, gamma) == pytest.approx(by_sum, rel=2e-3)


@pytest.mark.parametrize(
    ("drafters", "room", "why"),
    [
        ([], 100, "no drafters"),
        ([candidate()], 1, "one token left"),
        ([candidate(rate=0.0)], 100, "no drafter pays"),
        ([candidate(overhead_s=3.0)], 100, "no drafter pays"),
        ([candidate(token_s=0.5)], 100, "no drafter pays"),
        ([candidate(rate=0.0), candidate("slow", 0.9, overhead_s=9.0)], 100, "no drafter pays"),
    ],
)
def test_plan_is_plain_if_no_drafter_pays(drafters: list[Candidate], room: int, why: str) -> None:
    plan = choose_plan(drafters, MEMORY_BOUND, room)
    assert (plan.gamma, plan.drafters) == (0, ())
    assert plan.reason.startswith("K=0")
    assert why in plan.reason


@given(st.lists(candidates, max_size=4), passes, st.integers(0, 40), batches)
def test_plan_is_the_best_by_brute_force(
    drafters: list[Candidate], pass_s: list[float], room: int, co_batched: CoBatchedRequests
) -> None:
    plan = choose_plan(drafters, pass_s, room, co_batched)
    speeds: dict[tuple[object, ...], float] = {(): (co_batched.tokens + 1.0) / pass_s[1]}
    for each in drafters:
        for gamma in range(1, min(MAX_GAMMA, room - 1) + 1):
            wait_s = (each.overhead_s + gamma * each.token_s) / (1 + co_batched.requests)
            tokens = co_batched.tokens + expected_tokens(each.rate, gamma)
            key = (each.node_id, gamma)
            speeds[key] = max(tokens / (wait_s + pass_s[gamma + 1]), speeds.get(key, 0.0))
    chosen = (*plan.drafters, plan.gamma) if plan.gamma else ()
    assert speeds[chosen] == pytest.approx(max(speeds.values()))


coarse = st.sampled_from([0.0, 0.1, 0.5, 1.0])
alike = st.builds(
    Candidate,
    node_id=st.sampled_from("abcdefgh"),
    rate=coarse,
    evidence=st.just(9.0),
    token_s=coarse,
    overhead_s=coarse,
    is_measured=st.booleans(),
)


@given(st.lists(alike, min_size=1, max_size=12), passes, batches, st.floats(0, 1))
def test_dominated_drafters_never_change_the_plan(
    drafters: list[Candidate], pass_s: list[float], co_batched: CoBatchedRequests, overlap: float
) -> None:
    each = [choose_plan([one], pass_s, 40, co_batched, overlap) for one in drafters]
    best = max(plan.speed for plan in each)
    first = next(plan for plan in each if plan.speed == best)
    plan = choose_plan(drafters, pass_s, 40, co_batched, overlap)
    assert plan == (first if plan.drafters else replace(first, reason=plan.reason))


def test_reason_of_a_plain_plan_names_the_best_drafter_and_both_speeds() -> None:
    hopeless = candidate("hopeless", 0.1, token_s=0.1)
    near = candidate("near", 0.3, overhead_s=0.012, token_s=0.004)
    for drafters in ([near, hopeless], [hopeless, near]):
        plan = choose_plan(drafters, MEMORY_BOUND, 100)
        figures = "rtt+wait 12.0 ms, t_d 4.0 ms, t_v 30.6 ms, acceptance 0.30"
        reason_match = re.match(r"K=0: no drafter pays; near gives (\d+) tokens/s at K=1: (.*); "
                        r"plain (\d+) at t_v 30.3 ms$", plan.reason)  # fmt: skip
        assert reason_match is not None
        assert reason_match[2].startswith(figures)
        assert int(reason_match[1]) < int(reason_match[3]) == round(1 / MEMORY_BOUND[1])


def test_tokens_that_slow_many_other_requests_are_not_planned() -> None:
    arithmetic_bound = [0.001 * rows for rows in range(8, 34)]
    many = CoBatchedRequests(requests=7, rows=7, tokens=7.0)
    alone = choose_plan([candidate(rate=0.6)], MEMORY_BOUND, 100)
    assert alone.gamma > 0
    assert choose_plan([candidate(rate=0.6)], arithmetic_bound, 100, many).gamma == 0


@given(st.lists(candidates, max_size=4), passes, st.integers(0, 40))
def test_plan_fits_the_room(drafters: list[Candidate], pass_s: list[float], room: int) -> None:
    plan = choose_plan(drafters, pass_s, room)
    assert plan.gamma <= max(0, room - 1)
    assert bool(plan.drafters) == bool(plan.gamma)
    assert 0.0 <= plan.deadline_s <= LONGEST_DEADLINE_S


@given(rates, rates, passes)
def test_gamma_grows_with_acceptance(one: float, other: float, pass_s: list[float]) -> None:
    gammas = [
        choose_plan([candidate(rate=rate)], pass_s, 100).gamma for rate in sorted([one, other])
    ]
    assert gammas[0] <= gammas[1]


@given(seconds, seconds, rates, passes)
def test_gamma_falls_with_the_time_of_a_draft_token(
    one: float, other: float, rate: float, pass_s: list[float]
) -> None:
    gammas = [
        choose_plan([candidate(rate=rate, token_s=token_s)], pass_s, 100).gamma
        for token_s in sorted([one, other])
    ]
    assert gammas[0] >= gammas[1]


def test_reason_gives_the_figures_of_the_plan() -> None:
    plan = choose_plan([candidate(rate=0.71)], MEMORY_BOUND, 100)
    pattern = r"K=(\d+): rtt\+wait 2\.0 ms, t_d 1\.0 ms, t_v \d+\.\d ms, acceptance 0\.71"
    found = re.fullmatch(pattern, plan.reason)
    assert found is not None
    assert int(found[1]) == plan.gamma > 0


@st.composite
def trees_worth(draw: st.DrawFn) -> tuple[list[float], list[float], float, CoBatchedRequests]:
    paths = sorted(draw(st.lists(rates, max_size=24)), reverse=True)
    return paths, draw(passes), draw(seconds), draw(batches)


@given(trees_worth())
def test_worthwhile_nodes_are_the_best_by_brute_force(
    case: tuple[list[float], list[float], float, CoBatchedRequests],
) -> None:
    paths, pass_s, waited_s, co_batched = case
    speeds = [
        (co_batched.tokens + 1.0 + sum(paths[:size]))
        / (waited_s / (1 + co_batched.requests) + pass_s[size + 1])
        for size in range(len(paths) + 1)
    ]
    chosen = worthwhile_nodes(paths, pass_s, waited_s, co_batched)
    assert speeds[chosen] == pytest.approx(max(speeds))


def test_no_node_is_worth_expensive_tokens_and_every_node_free_ones() -> None:
    assert worthwhile_nodes([0.9, 0.8], [0.0, 1.0, 10.0, 20.0], 0.0) == 0
    assert worthwhile_nodes([0.9, 0.8], [1.0] * 26, 0.0) == 2
    assert worthwhile_nodes([0.9, 0.8], [0.0] * 26, 0.0) == 2
    assert worthwhile_nodes([], [1.0] * 26, 0.0) == 0


@pytest.mark.parametrize(
    ("expected_s", "worth_s", "is_measured", "patience_s"),
    [
        (0.0, 0.1, False, 0.1),
        (5.0, 0.0, False, LONGEST_DEADLINE_S),
        (0.0, 0.1, True, DEADLINE_FLOOR_S),
        (0.1, 9.0, True, 0.25),
        (0.1, 0.2, True, 0.2),
        (100.0, 0.0, True, LONGEST_DEADLINE_S),
        (100.0, 100.0, True, LONGEST_DEADLINE_S),
    ],
)
def test_deadline_follows_the_expected_time_and_the_worth_of_a_draft(
    expected_s: float, worth_s: float, is_measured: bool, patience_s: float
) -> None:
    assert deadline(expected_s, worth_s, is_measured=is_measured) == patience_s


@given(st.lists(candidates, min_size=1, max_size=4), st.integers(2, 100))
def test_probe_plan_asks_all_drafters_for_short_drafts(
    drafters: list[Candidate], room: int
) -> None:
    plan = probe_plan(drafters, room)
    assert plan.drafters == tuple(each.node_id for each in drafters)
    assert plan.gamma == min(PROBE_GAMMA, room - 1)
    assert DEADLINE_FLOOR_S <= plan.deadline_s <= LONGEST_DEADLINE_S
    assert f"probing {len(drafters)}" in plan.reason


def test_overlap_raises_the_speed_over_slow_links() -> None:
    far = candidate("far", 0.8, overhead_s=0.03)
    asked = choose_plan([far], MEMORY_BOUND, 100)
    ahead = choose_plan([far], MEMORY_BOUND, 100, overlap=1.0)
    assert ahead.speed > asked.speed
