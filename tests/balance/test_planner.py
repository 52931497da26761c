"""The planner: learns from rounds, and no drafter slows it for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.balance.ahead_plan import AHEAD_STEPS
from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.drafter_table import MAX_KNOWN
from edgecosine.balance.first_probes import FIRST_ASKED, FIRST_ASKED_PER_HOST
from edgecosine.balance.plan import LONGEST_DEADLINE_S, MAX_NODES, PROBE_GAMMA, Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.probes import OTHERS_TURN
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round
from edgecosine.balance.speculation_switch import FIRST_REST, PROBE_PASSES, TRIAL_SHARE
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.fusion.drafts import draft_of

PASS_S = 0.03
TRUTH = tuple(range(100, 140))


def planner(pass_s: float = PASS_S) -> Planner:
    """A planner that has measured 30 ms, or another time, for any pass."""
    made = Planner()
    for rows in (1, MAX_NODES + 1):
        made.statistics.observe_pass(PassReport(rows, pass_s))
    return made


def observe_draft(
    made: Planner, request: RequestState, node_id: str, *, hits: int, size: int = 4
) -> None:
    """Observe a quick answer of which `hits` tokens are accepted."""
    made.statistics.observe_answer(node_id, 0.004, 0.002, size)
    tokens = TRUTH[:hits] + (0,) * (size - hits)
    draft = draft_of(node_id, 5, tokens, (0.9,) * size)
    made.statistics.acceptance.observe_truth(request, [draft], (0,) * 5 + TRUTH[: hits + 1])


def test_new_request_probes_all_drafters_and_then_asks_the_best() -> None:
    made, request = planner(), RequestState()
    first = made.first_plan(request, ["a", "b", "c"], 100)
    assert first.drafters == ("a", "b", "c")
    for node_id, hits in (("a", 0), ("b", 4), ("c", 1)):
        observe_draft(made, request, node_id, hits=hits)
    for _ in range(5):
        plan = made.plan(request, ["a", "b", "c"], 100)
        assert plan.drafters == ("b",)
        observe_draft(made, request, "b", hits=4)
    assert made.last_reason == plan.reason


def test_new_requests_probe_the_best_of_many_drafters_and_the_others_in_turn() -> None:
    made, names = planner(), [f"d{number:02}" for number in range(40)]
    asked: list[set[str]] = []
    for _ in range(40):
        request = made.statistics.open("edgecosine")
        plan = made.first_plan(request, names, 100)
        asked.append(set(plan.drafters))
        for node_id in plan.drafters:
            observe_draft(made, request, node_id, hits=4 if node_id == "d33" else 1)
        made.statistics.close(request)
    assert all(len(each) == FIRST_ASKED for each in asked)
    assert set.union(*asked) == set(names)
    met = next(number for number, each in enumerate(asked) if "d33" in each)
    assert all("d33" in each for each in asked[met:])


def test_short_prefill_probes_few_drafters_of_one_machine_and_all_in_turn() -> None:
    made = planner(0.003)
    for name in "abcdef":
        made.statistics.add_link(name, "192.0.2.1")
    made.statistics.add_link("g", "192.0.2.2")
    asked: list[set[str]] = []
    for _ in range(6 * OTHERS_TURN):
        request = made.statistics.open("edgecosine")
        plan = made.first_plan(request, "abcdefg", 100)
        asked.append(set(plan.drafters))
        for node_id in plan.drafters:
            observe_draft(made, request, node_id, hits=4 if node_id == "c" else 1)
        made.statistics.close(request)
    assert all("g" in each and 2 <= len(each) <= 1 + FIRST_ASKED_PER_HOST for each in asked)
    assert set.union(*asked) == set("abcdefg")
    met = next(number for number, each in enumerate(asked) if "c" in each)
    assert all("c" in each for each in asked[met:])


def test_prefill_probes_those_of_one_machine_that_it_has_the_time_for() -> None:
    made = planner()
    for name in "abcdef":
        made.statistics.add_link(name, "192.0.2.1")
    for seconds, fitting in ((0.004, 6), (0.010, 3), (0.040, 1)):
        for _ in range(30):
            made.statistics.observe_answer("a", seconds, seconds / 2, PROBE_GAMMA)
        made.statistics.open("edgecosine")
        request = made.statistics.open("edgecosine")
        asked = made.first_plan(request, "abcdef", 100).drafters
        assert "a" in asked
        assert abs(len(asked) - fitting) <= 1


def test_drafter_that_was_late_is_asked_behind_one_that_was_not() -> None:
    """Where one drafter of a machine is asked, the better of the two would be late for ever."""
    made = planner(0.003)
    for name in "ab":
        made.statistics.add_link(name, "192.0.2.1")
    request = made.statistics.open("edgecosine")
    for _ in range(20):
        observe_draft(made, request, "a", hits=4)
        observe_draft(made, request, "b", hits=3)
    made.statistics.open("edgecosine")
    assert made.first_plan(request, "ab", 100).drafters == ("a",)
    made.statistics.drafter("a").observe_late(1.0, 0)
    made.statistics.drafter("a").back_at = 0
    assert made.first_plan(request, "ab", 100).drafters == ("b",)


@pytest.mark.parametrize("size", [0, 4])
def test_useless_drafter_is_probed_rarely(size: int) -> None:
    made, request = planner(), RequestState()
    num_asked = 0
    for _ in range(400):
        plan = made.plan(request, ["useless"], 100)
        probe = made.probe(request, ["useless"], plan)
        num_asked += len(plan.drafters) + len(probe.drafters)
        for _ in (*plan.drafters, *probe.drafters):
            observe_draft(made, request, "useless", hits=0, size=size)
    assert 10 < num_asked < 90


def test_probes_go_to_the_drafters_left_out_in_turn() -> None:
    made, request = planner(), RequestState()
    for node_id, hits in (("a", 0), ("b", 4), ("c", 1)):
        for _ in range(3):
            observe_draft(made, request, node_id, hits=hits)
    probed: list[str] = []
    for _ in range(60):
        plan = made.plan(request, ["a", "b", "c"], 100)
        assert plan.drafters == ("b",)
        observe_draft(made, request, "b", hits=4)
        probed += made.probe(request, ["a", "b", "c"], plan).drafters
    assert set(probed) == {"a", "c"}
    assert abs(probed.count("a") - probed.count("c")) <= 1


def test_machine_with_an_open_probe_is_not_probed() -> None:
    made, request = planner(), RequestState()
    for name, host in (("a", "192.0.2.1"), ("b", "192.0.2.1"), ("c", "192.0.2.2"), ("d", "")):
        made.statistics.add_link(name, host)
    probed: set[str] = set()
    for _ in range(60):
        probed.update(made.probe(request, "abcd", Plan(), probed=["a"]).drafters)
    assert probed == {"c", "d"}


def test_silent_drafter_costs_little_time() -> None:
    made = planner()
    waited_s, rounds = 0.0, 0
    for _ in range(400):
        request = RequestState()
        for _ in range(50):
            rounds += 1
            plan = made.plan(request, ["silent"], 100)
            if plan.drafters:
                assert plan.deadline_s <= LONGEST_DEADLINE_S
                waited_s += plan.deadline_s
                made.statistics.observe_late("silent", plan.deadline_s)
    assert waited_s < 0.05 * rounds * PASS_S


def test_drafter_that_answers_again_is_asked_at_once() -> None:
    made, request = planner(), RequestState()
    for _ in range(1000):
        if made.plan(request, ["d"], 100).drafters:
            made.statistics.observe_late("d", 1.0)
    while not made.probe(request, ["d"], made.plan(request, ["d"], 100)).drafters:
        pass
    for _ in range(40):
        observe_draft(made, request, "d", hits=4)
    assert all(made.plan(request, ["d"], 100).drafters for _ in range(10))


def test_one_delay_seen_by_many_sessions_counts_once() -> None:
    made, requests = planner(), [RequestState() for _ in range(8)]
    for request in requests:
        made.plan(request, ["d"], 100)
        observe_draft(made, request, "d", hits=4)
    for request in requests:
        made.plan(request, ["d"], 100)
    for _ in requests:
        made.statistics.observe_late("d", 0.02)
    plans = [made.plan(requests[0], ["d"], 100) for _ in range(30)]
    assert any(plan.drafters for plan in plans)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=12),
        max_size=4,
    ),
    st.integers(-1, 30),
)
def test_tree_fits_the_room(drafts: list[list[tuple[int, float]]], room: int) -> None:
    trees = [
        draft_of(f"d{n}", 3, tuple(t for t, _ in draft), tuple(c for _, c in draft))
        for n, draft in enumerate(drafts)
    ]
    tree = planner().fuse(RequestState(), Round(Plan(), trees), room, 0.001)
    assert len(tree) <= max(0, min(room, MAX_NODES))


def test_tree_is_cut_to_what_its_nodes_are_worth() -> None:
    made = Planner()
    for rows in range(1, MAX_NODES + 2):
        made.statistics.observe_pass(PassReport(rows, 0.01 * rows))
    uncertain = draft_of("d", 3, tuple(range(12)), (0.5,) * 12)
    assert len(made.fuse(RequestState(), Round(Plan(), [uncertain]), 20, 0.0)) < 3
    assert len(planner().fuse(RequestState(), Round(Plan(), [uncertain]), 20, 0.0)) == 12


def test_over_confident_drafter_loses_its_nodes() -> None:
    made, request = planner(), RequestState()
    over_confident = draft_of("biased", 3, (0, 1), (1.0, 1.0))
    honest = draft_of("honest", 3, (100, 101), (0.7, 0.7))
    assert made.fuse(request, Round(Plan(), [over_confident, honest]), 1, 0.0).tokens == (0,)
    for _ in range(10):
        made.statistics.acceptance.observe_truth(request, [over_confident], (0, 0, 0, 100, 101))
        made.statistics.acceptance.observe_truth(request, [honest], (0, 0, 0, 100, 101))
    assert made.fuse(request, Round(Plan(), [over_confident, honest]), 1, 0.0).tokens == (100,)


def test_drafts_are_shorter_if_their_tokens_slow_other_requests() -> None:
    made = Planner()
    for rows in range(1, 60):
        made.statistics.observe_pass(PassReport(rows, 0.02 + 0.001 * rows))
    lengths = []
    requests = []
    for _ in range(8):
        request = made.statistics.open("edgecosine")
        requests.append(request)
        for _ in range(6):
            observe_draft(made, request, "d", hits=4)
            observe_draft(made, request, "d", hits=1)
        plan = made.plan(request, ["d"], 100)
        plan = made.plan(request, ["d"], 100)
        draft = draft_of("d", 3, TRUTH[: plan.gamma], (0.7,) * plan.gamma)
        made.fuse(request, Round(Plan(), [draft]), 50, 0.0)
        lengths.append(plan.gamma)
    assert lengths[0] > lengths[-1]
    for request in requests:
        made.statistics.close(request)
    newcomer = made.statistics.open("edgecosine")
    for _ in range(6):
        observe_draft(made, newcomer, "d", hits=4)
    assert made.plan(newcomer, ["d"], 100).gamma >= lengths[0]


def test_new_link_resets_the_speed_of_a_drafter() -> None:
    made, request = planner(), RequestState()
    for _ in range(300):
        made.plan(request, ["d"], 100)
        made.statistics.observe_late("d", 1.0)
    assert not made.first_plan(request, ["d"], 100).drafters
    made.statistics.add_link("d")
    assert made.first_plan(request, ["d"], 100).drafters == ("d",)


def plain_by_measurement(made: Planner, request: RequestState) -> None:
    """Observe slow rounds, against all estimates, until speculation is switched off."""
    passes = 0
    while made.plan(request, ["d"], 100).drafters:
        made.statistics.observe_pass(PassReport(5, PASS_S, 1.0, 2))
        passes += 1
        assert passes < 100


def test_quicker_or_new_drafter_causes_a_probe_of_speculation() -> None:
    made = planner()
    made.statistics.open("edgecosine")
    request = made.statistics.open("edgecosine")
    for _ in range(20):
        made.statistics.observe_answer("d", 0.022, 0.002, 4)
        made.statistics.acceptance.observe_truth(
            request, [draft_of("d", 5, TRUTH[:4], (0.9,) * 4)], (0,) * 5 + TRUTH[:5]
        )
    plain_by_measurement(made, request)
    made.statistics.observe_answer("d", 0.022, 0.002, 4)
    assert not made.plan(request, ["d"], 100).drafters
    for _ in range(30):
        made.statistics.observe_answer("d", 0.003, 0.002, 4)
    plain = PassReport(2, PASS_S, PASS_S, num_tokens=2)
    num_plain = 0
    while not made.plan(request, ["d"], 100).drafters:
        made.statistics.observe_pass(plain)
        num_plain += 1
    assert num_plain * TRIAL_SHARE <= 2 * PROBE_PASSES + 1, "until both trials are paid for"
    plain_by_measurement(made, request)
    num_plain = 0
    for _ in range(20):
        made.statistics.observe_answer("d", 0.003, 0.002, 4)
    assert not made.plan(request, ["d"], 100).drafters
    made.statistics.add_link("new")
    while not made.plan(request, ["d"], 100).drafters:
        made.statistics.observe_pass(plain)
        num_plain += 1
    assert num_plain <= FIRST_REST


def test_no_request_speculates_if_plain_decoding_serves_all_sooner() -> None:
    """Beyond eight rows a row costs as much as its draft token is worth to its request alone."""
    made = Planner()
    for rows in range(1, 9):
        made.statistics.observe_pass(PassReport(rows, 0.010))
    for rows in range(9, 120):
        made.statistics.observe_pass(PassReport(rows, 0.020 + 0.001 * (rows - 9)))
    requests = [made.statistics.open("edgecosine") for _ in range(8)]
    for request in requests:
        made.statistics.set_size(request, 4, 2.5)
        observe_draft(made, request, "d", hits=4)
        observe_draft(made, request, "d", hits=3)
    draft = draft_of("d", 5, TRUTH[:4], (0.9,) * 4)
    for request in requests:
        assert not made.plan(request, ["d"], 100).drafters
        assert len(made.fuse(request, Round(Plan(), [draft]), 50, 0.0)) == 0
    for request in requests[1:]:
        made.statistics.close(request)
    assert made.plan(requests[0], ["d"], 100).drafters
    assert len(made.fuse(requests[0], Round(Plan(), [draft]), 50, 0.0)) > 2


def test_good_drafter_is_soon_measured_quick_again() -> None:
    made, request = planner(), RequestState()
    for _ in range(20):
        observe_draft(made, request, "far", hits=4)
        observe_draft(made, request, "near", hits=2)
        for node_id in ("far", "near"):
            made.statistics.observe_answer(node_id, 10.0, 0.001, 4)
    assert not made.plan(request, ["far", "near"], 100).drafters
    probed: list[str] = []
    for _ in range(40):
        plan = made.plan(request, ["far", "near"], 100)
        probed += made.probe(request, ["far", "near"], plan).drafters
    assert probed.count("far") > probed.count("near") > 1
    made.statistics.observe_answer("far", 0.003, 0.001, 4, is_disturbed=True)
    assert made.plan(request, ["far", "near"], 100).drafters == ("far",)


def test_union_of_drafts_made_ahead_is_computed_once() -> None:
    made, request = planner(), RequestState()
    for _ in range(5):
        observe_draft(made, request, "d", hits=4)
    plan = made.plan(request, ["d"], 100)
    current = made.start_round(request, plan, [draft_of("d", 3, TRUTH[:8], (0.95,) * 8)])
    assert current.union is not None
    assert made.fuse(request, current, 50, 0.0).tokens == TRUTH[:8]
    fresh = current.with_drafts([draft_of("d", 3, TRUTH[8:12], (0.95,) * 4)])
    assert fresh.union is None
    assert made.fuse(request, fresh, 50, 0.0).tokens == TRUTH[8:12]


def test_slow_drafters_draft_below_the_targets_own_token() -> None:
    """A single step ahead of an empty tree only guesses that token."""
    made, request = planner(), RequestState()
    made.statistics.observe_ahead("slow", 0.9 * PASS_S, 0.9 * PASS_S, 1)
    plan = made.ahead(request, ("slow",), Plan(("slow",), gamma=3), EMPTY_TREE)
    assert (plan.gamma, plan.within_s) == (2, 0.0)


def test_drafts_ahead_have_the_time_of_a_pass() -> None:
    made = planner()
    made.statistics.observe_ahead("quick", 0.1 * PASS_S, 0.1 * PASS_S, 1)
    request = made.statistics.open("edgecosine")
    plan = made.ahead(request, ("quick",), Plan(("quick",), gamma=3), EMPTY_TREE)
    assert plan.within_s == pytest.approx(PASS_S)
    assert plan.gamma == AHEAD_STEPS[1]


def rounds_until(
    made: Planner, request: RequestState, hits: dict[str, int], wanted: tuple[str, ...]
) -> int:
    """Rounds and probes until plans have the `wanted` first drafter."""
    for number in range(200):
        plan = made.plan(request, [*hits], 100)
        if plan.drafters[:1] == wanted:
            return number
        probe = made.probe(request, [*hits], plan)
        for node_id in (*plan.drafters, *probe.drafters):
            observe_draft(made, request, node_id, hits=hits[node_id])
    return 200


def test_new_subject_changes_the_routing_within_a_few_rounds() -> None:
    made = planner()
    request = made.statistics.open("edgecosine")
    before, after = {"manual": 4, "python": 1}, {"manual": 0, "python": 4}
    for node_id, hits in before.items():
        observe_draft(made, request, node_id, hits=hits)
    for _ in range(100):
        assert rounds_until(made, request, before, ("manual",)) == 0
        observe_draft(made, request, "manual", hits=4)
    assert 0 < rounds_until(made, request, after, ("python",)) <= 16
    assert 0 < rounds_until(made, request, before, ("manual",)) <= 16


def test_drafter_is_dropped_when_it_turns_bad_and_used_when_good_again() -> None:
    """A draft takes half a pass, so the drafter pays only while it is right."""
    made = planner()

    def judge(request: RequestState, hits: int) -> None:
        made.statistics.observe_answer("d", 0.015, 0.002, 4)
        tokens = TRUTH[:hits] + (0,) * (4 - hits)
        draft = draft_of("d", 5, tokens, (0.9,) * 4)
        made.statistics.acceptance.observe_truth(request, [draft], (0,) * 5 + TRUTH[: hits + 1])

    request = made.statistics.open("edgecosine")
    for _ in range(100):
        judge(request, 4)
    num_asked = 0
    while made.plan(request, ["d"], 100).drafters:
        judge(request, 0)
        num_asked += 1
        assert num_asked < 16
    assert num_asked > 1
    made.statistics.close(request)
    newcomer, num_probed = made.statistics.open("edgecosine"), 0
    while not made.plan(newcomer, ["d"], 100).drafters:
        judge(newcomer, 4)
        num_probed += 1
        assert num_probed < 8


def test_better_drafter_linked_later_takes_over() -> None:
    made = planner()
    request = made.statistics.open("edgecosine")
    for _ in range(30):
        observe_draft(made, request, "fair", hits=2)
    assert made.plan(request, ["fair"], 100).drafters == ("fair",)
    made.statistics.add_link("better")
    assert rounds_until(made, request, {"fair": 2, "better": 4}, ("better",)) <= 4


def test_drafters_that_left_are_dropped_beyond_a_bound_and_linked_ones_stay() -> None:
    made = Planner().statistics
    made.add_link("linked")
    made.drafter("linked").num_drafted = 7
    for number in range(3 * MAX_KNOWN):
        name = f"passing-{number}"
        made.add_link(name)
        made.remove_link(name)
    assert len(made.drafters) == MAX_KNOWN
    assert made.drafter("linked").num_drafted == 7
    made.add_link("passing-0")
    assert f"passing-{2 * MAX_KNOWN + 1}" not in made.drafters
    assert f"passing-{3 * MAX_KNOWN - 1}" in made.drafters
