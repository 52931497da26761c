"""Places for those who were let in: what a former process has said costs this one nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.node.gateway.session_slots import SessionSlots
from edgecosine.protocol.api.request import Answer, Choice, Committed, Request
from tests.support.mqtt import run

REQUEST = Request("a", "1", "completion", "hm", max_tokens=100)


@pytest.mark.parametrize("num_said", [0, 90])
def test_pace_is_learned_from_what_this_process_has_made(num_said: int) -> None:
    async def story() -> tuple[float, float]:
        admission = AdmissionControl(num_slots=1, max_queued=1)
        places = SessionSlots(admission)
        request = replace(REQUEST, said=Committed((1,) * num_said))
        [turn] = places.book([request])
        assert turn.job.cost == 100 - num_said
        answer = Answer((Choice("x", (1,) * 95, "stop"),), 1, 0, "m")
        async with turn:
            places.learn(turn, request, answer, elapsed_s=95.0 - num_said)
        return admission.pace.token_s, admission.num_running

    token_s, num_at_work = run(story())
    assert token_s == pytest.approx(1.0)
    assert num_at_work == 0


def test_cancelled_in_the_queue_gives_its_place_up() -> None:
    async def story() -> None:
        admission = AdmissionControl(num_slots=1, max_queued=1)
        places = SessionSlots(admission)
        [first] = places.book([REQUEST])
        [second] = places.book([REQUEST])

        async def wait() -> None:
            async with second:
                raise AssertionError("its turn never comes")

        async with first, asyncio.TaskGroup() as group:
            waiting = group.create_task(wait())
            await asyncio.sleep(0)
            assert admission.num_queued == 1
            waiting.cancel()
        assert admission.num_queued == admission.num_running == 0

    run(story())


def test_suspects_come_first_and_alone_whoever_leaves() -> None:
    async def story() -> None:
        admission = AdmissionControl(num_slots=3, max_queued=9)
        places = SessionSlots(admission)
        [before] = places.book([REQUEST])
        first = places.book([REQUEST, REQUEST], is_suspect=True)
        [second] = places.book([REQUEST], is_suspect=True)
        [third] = places.book([REQUEST], is_suspect=True)
        others = places.book([REQUEST, REQUEST])

        def at_work() -> list[bool]:
            turns = (before, *first, second, third, *others)
            return [turn.begun.done() and not turn.begun.cancelled() for turn in turns]

        assert at_work() == [True, *[False] * 6]
        places.leave([before])
        assert at_work()[1:] == [True, True, *[False] * 4]
        places.leave(first[:1])
        assert admission.num_running == 1
        second.begun.cancel()  # its asker has left and is about to say so
        places.leave(first[1:])
        assert at_work()[4:] == [False] * 3
        places.leave([second])
        assert at_work()[4:] == [True, False, False]
        places.leave([third])
        assert at_work()[5:] == [True, True]
        places.leave(others)
        assert admission.num_queued == admission.num_running == 0

    run(story())
