"""Session slots and queue positions; resumed tokens cost nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.node.gateway.session_slots import SessionSlots
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.result import Answer, Choice
from tests.support.mqtt import run

REQUEST = Request("a", "1", "completion", "hm", max_tokens=100)


@pytest.mark.parametrize("num_resumed", [0, 90])
def test_pace_is_learned_without_resumed_tokens(num_resumed: int) -> None:
    async def scenario() -> tuple[float, float]:
        admission = AdmissionControl(num_slots=1, max_queued=1)
        slots = SessionSlots(admission)
        request = replace(REQUEST, resumed=Committed((1,) * num_resumed))
        [position] = slots.book([request])
        assert position.job.cost == 100 - num_resumed
        answer = Answer((Choice("x", (1,) * 95, "stop"),), 1, 0, "m")
        async with position:
            slots.learn(position, request, answer, elapsed_s=95.0 - num_resumed)
        return admission.pace.token_s, admission.num_running

    token_s, num_at_work = run(scenario())
    assert token_s == pytest.approx(1.0)
    assert num_at_work == 0


def test_cancelled_waiter_releases_its_position() -> None:
    async def scenario() -> None:
        admission = AdmissionControl(num_slots=1, max_queued=1)
        slots = SessionSlots(admission)
        [first] = slots.book([REQUEST])
        [second] = slots.book([REQUEST])

        async def wait() -> None:
            async with second:
                raise AssertionError("it never gets a slot")

        async with first, asyncio.TaskGroup() as group:
            waiting = group.create_task(wait())
            await asyncio.sleep(0)
            assert admission.num_queued == 1
            waiting.cancel()
        assert admission.num_queued == admission.num_running == 0

    run(scenario())


def test_suspects_run_first_and_one_at_a_time() -> None:
    async def scenario() -> None:
        admission = AdmissionControl(num_slots=3, max_queued=9)
        slots = SessionSlots(admission)
        [before] = slots.book([REQUEST])
        first = slots.book([REQUEST, REQUEST], is_suspect=True)
        [second] = slots.book([REQUEST], is_suspect=True)
        [third] = slots.book([REQUEST], is_suspect=True)
        others = slots.book([REQUEST, REQUEST])

        def have_slots() -> list[bool]:
            positions = (before, *first, second, third, *others)
            return [
                position.has_slot.done() and not position.has_slot.cancelled()
                for position in positions
            ]

        assert have_slots() == [True, *[False] * 6]
        slots.release([before])
        assert have_slots()[1:] == [True, True, *[False] * 4]
        slots.release(first[:1])
        assert admission.num_running == 1
        second.has_slot.cancel()  # it was cancelled and will release its position soon
        slots.release(first[1:])
        assert have_slots()[4:] == [False] * 3
        slots.release([second])
        assert have_slots()[4:] == [True, False, False]
        slots.release([third])
        assert have_slots()[5:] == [True, True]
        slots.release(others)
        assert admission.num_queued == admission.num_running == 0

    run(scenario())
