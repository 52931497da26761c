"""Chaos without a process: the schedule, the orders, and a judge that must be able to condemn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import LabError
from edgecosine.lab.chaos.checker import Heard, Story, judge
from edgecosine.lab.chaos.disk import small_disk
from edgecosine.lab.chaos.faults import BROKER, KINDS, MEANING, TARGET, Fault
from edgecosine.lab.chaos.schedule import make_schedule
from edgecosine.lab.chaos.wall_clock import WallClocks, why_no_steps
from edgecosine.lab.chaos.workload import make_bodies, make_orders
from edgecosine.protocol.api.answers import StreamPart
from tests.lab.chaos_cases import TEXTS, changed, error, final, good_story

DRAFTERS = ("d-0", "d-1")
seeds = st.integers(0, 1 << 32)


def _schedule(seed: int, requests: int, faults: int, kinds: Any = KINDS) -> tuple[Fault, ...]:
    return make_schedule(seed, requests=requests, faults=faults, kinds=kinds, drafters=DRAFTERS)


@given(seeds, st.integers(1, 1000), st.integers(0, 200))
def test_schedule_is_its_seeds_and_in_order(seed: int, requests: int, faults: int) -> None:
    schedule = _schedule(seed, requests, faults)
    assert schedule == _schedule(seed, requests, faults)
    assert len(schedule) == faults
    moments = [fault.after for fault in schedule]
    assert moments == sorted(moments)
    assert all(0 <= after < requests for after in moments)


@given(seeds, st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
def test_schedule_has_every_kind_and_no_other(seed: int, kinds: Any) -> None:
    counts = Counter(fault.kind for fault in _schedule(seed, 300, 3 * len(kinds), kinds))
    assert set(counts) == set(kinds)
    few = _schedule(seed, 300, len(kinds), kinds)
    assert {fault.kind for fault in few} == set(kinds)


@given(seeds)
def test_faults_are_where_and_as_they_can_be(seed: int) -> None:
    for fault in _schedule(seed, 300, 80):
        assert fault.place in {TARGET, BROKER, *DRAFTERS}
        for place in (TARGET, BROKER):
            assert place not in fault.kind.split("_") or fault.place == place
        assert ("drafter" in fault.kind.split("_")) <= (fault.place in DRAFTERS)
        is_at_once = fault.kind.startswith(("kill", "restart", "step"))
        assert is_at_once == (fault.seconds == 0)
        assert fault.kind.endswith("packets") <= (0 < fault.strength < 1)
        assert str(fault)


def test_other_seeds_give_other_schedules_and_every_kind_is_explained() -> None:
    assert _schedule(1, 300, 60) != _schedule(2, 300, 60)
    assert set(MEANING) == set(KINDS)


@given(seeds, st.integers(1, 300), st.integers(1, 64))
def test_orders_are_their_seeds_and_change_no_text(seed: int, count: int, num_bodies: int) -> None:
    bodies = make_bodies(seed, num_bodies, ["a", "b", "c"], 64)
    orders = make_orders(seed, count, bodies)
    assert orders == make_orders(seed, count, bodies)
    assert len({order.request.request_id for order in orders}) == count
    for order in orders:
        request, body = order.request, bodies[order.body]
        asked = replace(request, request_id="", stream=False, policy=body.policy)
        assert asked == body
        assert order.is_cancelled <= request.stream
        assert not (order.is_cancelled and order.is_repeated)


def test_orders_are_mixed() -> None:
    bodies = make_bodies(0, 64, ["a"], 64)
    assert {body.sampling.temperature for body in bodies} == {0.0, 0.8}
    assert {body.n for body in bodies} == {1, 2}
    orders = make_orders(0, 300, bodies)
    assert {order.request.stream for order in orders} == {True, False}
    assert any(order.is_repeated for order in orders)
    assert any(order.is_cancelled for order in orders)


def _condemned(story: Story, **terms: Any) -> set[str]:
    verdict = judge({"a": story}, terms.pop("connections", ()), **terms)
    assert verdict.is_clean == (not any(verdict.faulty.values()))
    return {kind for kind, names in verdict.faulty.items() if names}


def test_good_story_is_clean() -> None:
    assert _condemned(good_story()) == set()


def test_empty_run_is_clean() -> None:
    assert judge({}, ()).is_clean


OTHER = "one two four"
LOST = [
    changed(heard=[], told=None),
    changed(told=None),
    changed(heard=[Heard(2.0, error("overloaded", retry_after_s=1.0))], told=None),
]
DOUBLED = [
    changed(heard=[Heard(2.0, final(*TEXTS)), Heard(3.0, final(*TEXTS, created=2))]),
    changed(told=json.loads(final(*TEXTS, created=2))),
    changed(heard=[Heard(2.0, final(*TEXTS)), Heard(3.0, final(*TEXTS))]),
]
DIFFERENT = [
    changed(heard=[Heard(2.0, final(OTHER, TEXTS[1]))], told=json.loads(final(OTHER, TEXTS[1]))),
    changed(heard=[Heard(2.0, final(TEXTS[0]))], told=json.loads(final(TEXTS[0]))),
    changed(heard=[Heard(2.0, error("internal_error"))], told=None, failure="internal_error"),
    changed(heard=[Heard(2.0, error("cancelled"))], told=None, failure="cancelled"),
    changed(heard=[Heard(2.0, b"no JSON")], told=None, failure="?"),
    changed(failure="gone"),
    changed(pieces=[StreamPart(0, "one four", is_last=False)]),
    changed(pieces=[StreamPart(1, "one", is_last=False)]),
    changed(pieces=[StreamPart(0, "one", is_last=False, choice=1)]),
    changed(pieces=[StreamPart(0, "one", is_last=False, choice=7)]),
    changed(streamed={0: TEXTS[0]}),
    changed(streamed={0: TEXTS[0], 1: TEXTS[1] + TEXTS[1]}),
    changed(may_be_cancelled=True, streamed={0: "two"}),
]


@pytest.mark.parametrize("story", LOST)
def test_lost_is_detected(story: Story) -> None:
    assert "lost" in _condemned(story)


@pytest.mark.parametrize("story", DOUBLED)
def test_doubled_is_detected(story: Story) -> None:
    assert _condemned(story) == {"doubled"}


@pytest.mark.parametrize("story", DIFFERENT)
def test_different_is_detected(story: Story) -> None:
    assert "different" in _condemned(story)


def test_hung_is_detected_and_nothing_else_is_said_of_it() -> None:
    assert _condemned(changed(is_over=False, heard=[], told=None)) == {"hung"}


def test_every_fault_is_found_among_others() -> None:
    stories = {
        "good": good_story(),
        "lost": LOST[0],
        "doubled": DOUBLED[0],
        "different": DIFFERENT[0],
    }
    verdict = judge({**stories, "hung": changed(is_over=False)}, ())
    assert {kind: set(names) for kind, names in verdict.faulty.items()} == {
        kind: {kind} for kind in ("lost", "doubled", "different", "hung")
    }
    assert verdict.requests == 5


def test_given_up_requests_may_end_either_way() -> None:
    ended = changed(may_be_cancelled=True, told=None, streamed={0: "one"})
    assert _condemned(ended) == set()
    given_up = replace(ended, heard=[Heard(2.0, error("cancelled"))])
    assert _condemned(given_up) == set()
    assert judge({"a": given_up}, ()).cancelled == 1


AGAIN = changed(heard=[Heard(2.0, final(*TEXTS)), Heard(9.0, final(*TEXTS))])


@pytest.mark.parametrize(
    ("span", "is_reason"),
    [
        ((5.0, 5.0), True),
        ((1.0, 3.0), True),
        ((8.0, 12.0), True),
        ((9.5, 10.0), False),
        ((0.0, 1.9), False),
    ],
)
def test_repetition_over_a_new_connection_is_counted_and_no_other(
    span: tuple[float, float], *, is_reason: bool
) -> None:
    verdict = judge({"a": AGAIN}, [span])
    assert verdict.is_clean == is_reason
    assert verdict.repeated_finals == 1


def test_repetition_for_who_asked_again_is_no_fault_and_a_call_of_the_roll_is_not_counted() -> None:
    asked_again = replace(AGAIN, asked_s=[1.0, 8.0])
    verdict = judge({"a": asked_again}, ())
    assert verdict.is_clean
    assert verdict.repeated_finals == 1
    assert judge({"a": asked_again}, (), called_s=7.0).repeated_finals == 0
    assert _condemned(replace(AGAIN, asked_s=[1.0, 9.5])) == {"doubled"}


@pytest.mark.parametrize(("num_asked", "is_clean"), [(1, False), (2, False), (3, True)])
def test_each_repetition_needs_a_reason_of_its_own(num_asked: int, *, is_clean: bool) -> None:
    """Two came again, and nobody connected anew between them."""
    story = changed(
        heard=[Heard(float(at), final(*TEXTS)) for at in (2, 3, 4)],
        asked_s=[1.0 + 0.1 * number for number in range(num_asked)],
    )
    assert (_condemned(story) == set()) == is_clean
    assert (_condemned(story, connections=[(3.5, 3.5)]) == set()) == (num_asked > 1)


@pytest.mark.parametrize(("asked_s", "is_clean"), [(2.5, True), (1.0, False), (3.5, False)])
def test_answer_before_the_first_question_that_was_heard_shows_one_that_was_not(
    asked_s: float, *, is_clean: bool
) -> None:
    heard = [Heard(at, final(*TEXTS)) for at in (2.0, 3.0)]
    assert (_condemned(changed(heard=heard, asked_s=[asked_s])) == set()) == is_clean


@pytest.mark.parametrize(("num_finals", "is_clean"), [(3, True), (4, False)])
def test_new_connection_is_a_reason_for_the_final_and_for_the_request_delivered_again(
    num_finals: int, *, is_clean: bool
) -> None:
    story = changed(heard=[Heard(2.0 + number, final(*TEXTS)) for number in range(num_finals)])
    assert (_condemned(story, connections=[(2.5, 2.5)]) == set()) == is_clean


def test_faults_on_all_sides_excuse_no_second_final() -> None:
    """As in a chaos run: something is broken every few seconds, but no connection between."""
    around = [(float(at), float(at)) for at in range(-60, 60, 3)]
    twice = changed(heard=[Heard(3.1, final(*TEXTS)), Heard(5.9, final(*TEXTS))])
    assert _condemned(twice, connections=around) == {"doubled"}


def test_refusals_are_no_finals_and_gaps_of_a_stream_are_counted() -> None:
    story = changed(
        heard=[Heard(1.5, error("overloaded", retry_after_s=1.0)), Heard(2.0, final(*TEXTS))],
        pieces=[StreamPart(4, TEXTS[0][4:], is_last=False), StreamPart(0, TEXTS[0], is_last=False)],
    )
    verdict = judge({"a": story}, ())
    assert verdict.is_clean
    assert (verdict.refusals, verdict.stream_gaps, verdict.stream_parts) == (1, 1, 2)


@given(st.lists(st.integers(0, 13), max_size=12))
def test_stream_of_the_text_is_clean_wherever_it_was_divided_or_began_again(
    ends: list[int],
) -> None:
    text, pieces, begin = TEXTS[0], [], 0
    for end in ends:
        begin = begin if end >= begin else 0
        pieces.append(StreamPart(begin, text[begin:end], is_last=False))
        begin = end
    assert _condemned(changed(pieces=[*pieces, StreamPart(99, "", is_last=True)])) == set()


@given(st.integers(0, 12), st.characters(codec="ascii"))
def test_one_wrong_character_in_a_stream_is_found(place: int, wrong: str) -> None:
    text = TEXTS[0][:place] + wrong + TEXTS[0][place + 1 :]
    story = changed(pieces=[StreamPart(0, text, is_last=False)])
    assert ("different" in _condemned(story)) == (text != TEXTS[0])


NOW = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


@pytest.mark.skipif(why_no_steps() is not None, reason=f"clocks: {why_no_steps()}")
def test_wall_clock_of_one_process_jumps_and_no_other_clock(tmp_path: Path) -> None:
    clocks = WallClocks(tmp_path)

    def read(process: subprocess.Popen[str]) -> list[float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return [float(word) for word in process.stdout.readline().split()]

    command = [sys.executable, "-c", NOW]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=dict(clocks.environment("node")),
    ) as process:  # fmt: skip
        for step_s, shift_s in ((0, 0), (7200, 7200), (-10000, -2800)):
            clocks.step("node", step_s)
            wall_s, steady_s = read(process)
            assert abs(wall_s - (time.time() + shift_s)) < 600
            assert steady_s <= time.monotonic()
        clocks.environment("node")
        assert abs(read(process)[0] - (time.time() - 2800)) < 600
        assert process.stdin is not None
        process.stdin.close()


def test_disk_is_full_until_it_is_emptied_and_gone_afterwards() -> None:
    try:
        with small_disk() as disk:
            file = disk.path / "journal"
            file.write_bytes(b"before")
            disk.fill()
            with pytest.raises(OSError, match="No space"):
                file.write_bytes(bytes(100_000))
            disk.empty()
            file.write_bytes(bytes(100_000))
            path = disk.path
    except LabError as reason:
        pytest.skip(f"no disk can be made here: {reason}")
    assert not path.exists()
    assert str(path) not in Path("/proc/mounts").read_text()
