"""Chaos without processes: schedule, workload, and a checker that detects all faults."""

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
from edgecosine.lab.chaos.checker import ReceivedMessage, RequestHistory, check
from edgecosine.lab.chaos.disk import small_disk
from edgecosine.lab.chaos.faults import BROKER, KINDS, MEANING, MEMBER_KINDS, TARGET, Fault
from edgecosine.lab.chaos.schedule import make_schedule
from edgecosine.lab.chaos.wall_clock import WallClocks, why_no_steps
from edgecosine.lab.chaos.workload import make_bodies, make_workload
from edgecosine.protocol.api.answers import StreamPart
from tests.lab.chaos_cases import TEXTS, changed, error, final, good_history

DRAFTERS = ("d-0", "d-1")
MEMBERS = ("m-0", "m-1")
seeds = st.integers(0, 1 << 32)


def _schedule(seed: int, requests: int, faults: int, kinds: Any = KINDS) -> tuple[Fault, ...]:
    return make_schedule(
        seed, requests=requests, faults=faults, kinds=kinds, drafters=DRAFTERS, members=MEMBERS
    )


@given(seeds, st.integers(1, 1000), st.integers(0, 200))
def test_schedule_is_ordered_and_deterministic(seed: int, requests: int, faults: int) -> None:
    schedule = _schedule(seed, requests, faults)
    assert schedule == _schedule(seed, requests, faults)
    assert len(schedule) == faults
    moments = [fault.after for fault in schedule]
    assert moments == sorted(moments)
    assert all(0 <= after < requests for after in moments)


@given(seeds, st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
def test_schedule_has_exactly_the_given_kinds(seed: int, kinds: Any) -> None:
    counts = Counter(fault.kind for fault in _schedule(seed, 300, 3 * len(kinds), kinds))
    assert set(counts) == set(kinds)
    few = _schedule(seed, 300, len(kinds), kinds)
    assert {fault.kind for fault in few} == set(kinds)


@given(seeds)
def test_faults_have_valid_places_and_durations(seed: int) -> None:
    for fault in _schedule(seed, 300, 80):
        assert fault.place in {TARGET, BROKER, *DRAFTERS, *MEMBERS}
        for place in (TARGET, BROKER):
            assert place not in fault.kind.split("_") or fault.place == place
        assert ("drafter" in fault.kind.split("_")) <= (fault.place in DRAFTERS)
        assert (fault.kind in MEMBER_KINDS) <= (fault.place in MEMBERS)
        is_at_once = fault.kind.startswith(("kill", "restart", "step"))
        assert is_at_once == (fault.seconds == 0)
        assert fault.kind.endswith("packets") <= (0 < fault.strength < 1)
        assert str(fault)


def test_other_seeds_give_other_schedules_and_every_kind_is_explained() -> None:
    assert _schedule(1, 300, 60) != _schedule(2, 300, 60)
    assert set(MEANING) == set(KINDS)


@given(seeds, st.integers(1, 300), st.integers(1, 64))
def test_workload_is_deterministic_and_keeps_the_bodies(
    seed: int, count: int, num_bodies: int
) -> None:
    bodies = make_bodies(seed, num_bodies, ["a", "b", "c"], 64)
    workload = make_workload(seed, count, bodies)
    assert workload == make_workload(seed, count, bodies)
    assert len({item.request.request_id for item in workload}) == count
    for item in workload:
        request, body = item.request, bodies[item.body]
        assert replace(request, request_id="", stream=False, policy=body.policy) == body
        assert item.is_cancelled <= request.stream
        assert not (item.is_cancelled and item.is_repeated)


def test_workload_is_mixed() -> None:
    bodies = make_bodies(0, 64, ["a"], 64)
    assert {body.sampling.temperature for body in bodies} == {0.0, 0.8}
    assert {body.n for body in bodies} == {1, 2}
    workload = make_workload(0, 300, bodies)
    assert {item.request.stream for item in workload} == {True, False}
    assert any(item.is_repeated for item in workload)
    assert any(item.is_cancelled for item in workload)


def _faults_of(history: RequestHistory, **terms: Any) -> set[str]:
    result = check({"a": history}, terms.pop("connections", ()), **terms)
    assert result.is_clean == (not any(result.faulty.values()))
    return {kind for kind, names in result.faulty.items() if names}


def test_correct_history_has_no_faults() -> None:
    assert _faults_of(good_history()) == set()


def test_empty_run_has_no_faults() -> None:
    assert check({}, ()).is_clean


OTHER = "one two four"
LOST = [
    changed(received=[], answer=None),
    changed(answer=None),
    changed(received=[ReceivedMessage(2.0, error("overloaded", retry_after_s=1.0))], answer=None),
]
DOUBLED = [
    changed(
        received=[
            ReceivedMessage(2.0, final(*TEXTS)),
            ReceivedMessage(3.0, final(*TEXTS, created=2)),
        ]
    ),
    changed(answer=json.loads(final(*TEXTS, created=2))),
    changed(received=[ReceivedMessage(2.0, final(*TEXTS)), ReceivedMessage(3.0, final(*TEXTS))]),
]
DIFFERENT = [
    changed(
        received=[ReceivedMessage(2.0, final(OTHER, TEXTS[1]))],
        answer=json.loads(final(OTHER, TEXTS[1])),
    ),
    changed(received=[ReceivedMessage(2.0, final(TEXTS[0]))], answer=json.loads(final(TEXTS[0]))),
    changed(
        received=[ReceivedMessage(2.0, error("internal_error"))],
        answer=None,
        failure="internal_error",
    ),
    changed(received=[ReceivedMessage(2.0, error("cancelled"))], answer=None, failure="cancelled"),
    changed(received=[ReceivedMessage(2.0, b"no JSON")], answer=None, failure="?"),
    changed(failure="gone"),
    changed(stream_parts=[StreamPart(0, "one four", is_last=False)]),
    changed(stream_parts=[StreamPart(1, "one", is_last=False)]),
    changed(stream_parts=[StreamPart(0, "one", is_last=False, choice=1)]),
    changed(stream_parts=[StreamPart(0, "one", is_last=False, choice=7)]),
    changed(streamed={0: TEXTS[0]}),
    changed(streamed={0: TEXTS[0], 1: TEXTS[1] + TEXTS[1]}),
    changed(may_be_cancelled=True, streamed={0: "two"}),
]


@pytest.mark.parametrize("history", LOST)
def test_lost_request_is_detected(history: RequestHistory) -> None:
    assert "lost" in _faults_of(history)


@pytest.mark.parametrize("history", DOUBLED)
def test_doubled_final_is_detected(history: RequestHistory) -> None:
    assert _faults_of(history) == {"doubled"}


@pytest.mark.parametrize("history", DIFFERENT)
def test_different_text_is_detected(history: RequestHistory) -> None:
    assert "different" in _faults_of(history)


def test_hung_request_has_no_other_fault() -> None:
    assert _faults_of(changed(is_over=False, received=[], answer=None)) == {"hung"}


def test_every_fault_is_detected_among_others() -> None:
    histories = {
        "good": good_history(),
        "lost": LOST[0],
        "doubled": DOUBLED[0],
        "different": DIFFERENT[0],
    }
    result = check({**histories, "hung": changed(is_over=False)}, ())
    assert {kind: set(names) for kind, names in result.faulty.items()} == {
        kind: {kind} for kind in ("lost", "doubled", "different", "hung")
    }
    assert result.requests == 5


def test_cancelled_requests_may_end_either_way() -> None:
    ended = changed(may_be_cancelled=True, answer=None, streamed={0: "one"})
    assert _faults_of(ended) == set()
    given_up = replace(ended, received=[ReceivedMessage(2.0, error("cancelled"))])
    assert _faults_of(given_up) == set()
    assert check({"a": given_up}, ()).cancelled == 1


AGAIN = changed(received=[ReceivedMessage(2.0, final(*TEXTS)), ReceivedMessage(9.0, final(*TEXTS))])


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
def test_final_repeated_over_a_new_connection_is_counted_and_any_other_is_a_fault(
    span: tuple[float, float], *, is_reason: bool
) -> None:
    result = check({"a": AGAIN}, [span])
    assert result.is_clean == is_reason
    assert result.repeated_finals == 1


def test_final_repeated_for_a_repeated_request_is_no_fault_and_not_counted_at_the_end() -> None:
    sent_again = replace(AGAIN, sent_s=[1.0, 8.0])
    result = check({"a": sent_again}, ())
    assert result.is_clean
    assert result.repeated_finals == 1
    assert check({"a": sent_again}, (), repeated_s=7.0).repeated_finals == 0
    assert _faults_of(replace(AGAIN, sent_s=[1.0, 9.5])) == {"doubled"}


@pytest.mark.parametrize(("num_sent", "is_clean"), [(1, False), (2, False), (3, True)])
def test_each_repetition_needs_a_reason_of_its_own(num_sent: int, *, is_clean: bool) -> None:
    """Two finals are repeated without a new connection in between."""
    history = changed(
        received=[ReceivedMessage(float(at), final(*TEXTS)) for at in (2, 3, 4)],
        sent_s=[1.0 + 0.1 * number for number in range(num_sent)],
    )
    assert (_faults_of(history) == set()) == is_clean
    assert (_faults_of(history, connections=[(3.5, 3.5)]) == set()) == (num_sent > 1)


@pytest.mark.parametrize(("sent_s", "is_clean"), [(2.5, True), (1.0, False), (3.5, False)])
def test_answer_before_the_first_observed_request_implies_an_unobserved_one(
    sent_s: float, *, is_clean: bool
) -> None:
    received = [ReceivedMessage(at, final(*TEXTS)) for at in (2.0, 3.0)]
    assert (_faults_of(changed(received=received, sent_s=[sent_s])) == set()) == is_clean


@pytest.mark.parametrize(("num_finals", "is_clean"), [(3, True), (4, False)])
def test_new_connection_explains_the_final_and_the_request_delivered_again(
    num_finals: int, *, is_clean: bool
) -> None:
    history = changed(
        received=[ReceivedMessage(2.0 + number, final(*TEXTS)) for number in range(num_finals)]
    )
    assert (_faults_of(history, connections=[(2.5, 2.5)]) == set()) == is_clean


def test_connections_before_and_after_do_not_explain_a_second_final() -> None:
    """As in a chaos run: connections every few seconds, but none between the finals."""
    around = [(float(at), float(at)) for at in range(-60, 60, 3)]
    twice = changed(
        received=[ReceivedMessage(3.1, final(*TEXTS)), ReceivedMessage(5.9, final(*TEXTS))]
    )
    assert _faults_of(twice, connections=around) == {"doubled"}


def test_refusals_are_no_finals_and_gaps_of_a_stream_are_counted() -> None:
    history = changed(
        received=[
            ReceivedMessage(1.5, error("overloaded", retry_after_s=1.0)),
            ReceivedMessage(2.0, final(*TEXTS)),
        ],
        stream_parts=[
            StreamPart(4, TEXTS[0][4:], is_last=False),
            StreamPart(0, TEXTS[0], is_last=False),
        ],
    )
    result = check({"a": history}, ())
    assert result.is_clean
    assert (result.refusals, result.stream_gaps, result.stream_parts) == (1, 1, 2)


@given(st.lists(st.integers(0, 13), max_size=12))
def test_stream_of_the_text_has_no_fault_however_it_is_divided_or_restarted(
    ends: list[int],
) -> None:
    text, stream_parts, begin = TEXTS[0], [], 0
    for end in ends:
        begin = begin if end >= begin else 0
        stream_parts.append(StreamPart(begin, text[begin:end], is_last=False))
        begin = end
    assert (
        _faults_of(changed(stream_parts=[*stream_parts, StreamPart(99, "", is_last=True)])) == set()
    )


@given(st.integers(0, 12), st.characters(codec="ascii"))
def test_wrong_character_in_a_stream_is_detected(place: int, wrong: str) -> None:
    text = TEXTS[0][:place] + wrong + TEXTS[0][place + 1 :]
    history = changed(stream_parts=[StreamPart(0, text, is_last=False)])
    assert ("different" in _faults_of(history)) == (text != TEXTS[0])


NOW = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


@pytest.mark.skipif(why_no_steps() is not None, reason=f"clocks: {why_no_steps()}")
def test_only_the_wall_clock_of_one_process_is_stepped(tmp_path: Path) -> None:
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


def test_disk_is_full_until_emptied_and_is_unmounted_afterwards() -> None:
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
