"""Plans follow what drafters are worth: real processes become far, slow or hostile in the middle of
an answer. Rounds are counted, and not seconds; the text is the target's own all the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.cli.up import split_cores
from edgecosine.lab.adversarial_drafter import ADVERSARIAL, write_adversarial_drafter
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.load_generator import ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.lab.network.conditions import NetworkConditions
from tests.support.mqtt import run_patiently

TARGET_CORES, DRAFTER_CORES = split_cores()
NEAR = NetworkConditions(delay_ms=0.15)
FAR = NetworkConditions(delay_ms=250)
"""Half a second there and back: for a draft of a few tokens too long by far, on busy machines too,
where a target may take ten times as long as on idle ones."""
MAX_TOKENS = 96
MIDDLE = 4
"""Parts of an answer after which something happens to it."""
MOST_WAITS = 8
"""Rounds that wait in vain for a drafter: two until it rests, one more after 24 plans, 48, 96..."""
MOST_ANSWERS = 10
"""Until a drafter that is as good as before is used as before."""
STOPPED_S, RUNNING_S = 0.018, 0.002

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not DRAFTER_CORES, reason="target and drafters need a processor each"),
]

Change = Callable[[], Coroutine[Any, Any, None]]


class _Talk:
    """Asks one cluster the same again and again; every answer is the target's own text."""

    def __init__(self, cluster: LabCluster) -> None:
        self.cluster = cluster
        self._prompt = zoo.prompts()["home"][0]
        self._text = ""

    async def begin(self) -> None:
        """Hear what the target says alone, and let it get to know its drafters."""
        self._text = (await self._ask("target-alone")).text
        await self.answer()

    async def answer(self) -> MeasuredAnswer:
        """One answer."""
        return self._checked(await self._ask("edgecosine"))

    async def answer_while(self, change: Change) -> MeasuredAnswer:
        """An answer in whose middle something changes."""
        is_middle, parts = asyncio.Event(), []

        def on_text(part: str) -> None:
            parts.append(part)
            if len(parts) == MIDDLE:
                is_middle.set()

        async def change_then() -> None:
            await is_middle.wait()
            await change()

        async with asyncio.TaskGroup() as group:
            group.create_task(change_then())
            answer = await self._ask("edgecosine", on_text)
        return self._checked(answer)

    async def answers_until(self, is_so: Callable[[MeasuredAnswer], bool]) -> MeasuredAnswer:
        """The first answer of which it is so; it must come soon."""
        plans = []
        for _ in range(MOST_ANSWERS):
            answer = await self.answer()
            if is_so(answer):
                return answer
            plans.append(answer.plan)
        raise AssertionError(plans)

    def _checked(self, answer: MeasuredAnswer) -> MeasuredAnswer:
        assert answer.text == self._text
        assert answer.plan.startswith("K=")
        return answer

    async def _ask(
        self, policy: str, on_text: Callable[[str], None] | None = None
    ) -> MeasuredAnswer:
        client = self.cluster.client
        return await ask(
            client, self._prompt, domain="", policy=policy, max_tokens=MAX_TOKENS,
            on_text=on_text, trace=True,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def _talk(drafters: tuple[str, ...], network: NetworkKind = "relays") -> AsyncIterator[_Talk]:
    plan = LabPlan(
        drafters, conditions=NEAR, network=network,
        target_cores=TARGET_CORES, drafter_cores=DRAFTER_CORES,
    )  # fmt: skip
    async with lab_cluster(plan, print) as cluster:
        talk = _Talk(cluster)
        await talk.begin()
        yield talk


def _speculates(answer: MeasuredAnswer) -> bool:
    """Trials alone, every sixth round, do not give as much as that."""
    return answer.num_accepted > answer.num_rounds


def _waits(answer: MeasuredAnswer, drafter: str) -> list[dict[str, Any]]:
    """The drafts of one drafter that rounds waited for."""
    return [
        draft
        for course in answer.rounds
        for draft in course["drafts"]
        if draft["drafter"] == drafter and draft["asked_s"] < course["submitted_s"]
    ]


def _num_given_up(answer: MeasuredAnswer, drafter: str) -> int:
    """Rounds that waited for a drafter in vain."""
    return sum(not draft["num_tokens"] for draft in _waits(answer, drafter))


def _num_asked(answer: MeasuredAnswer, drafter: str) -> int:
    """Rounds in which a drafter was asked at all: to wait for it, ahead, or to try it."""
    return sum(
        any(draft["drafter"] == drafter for draft in course["drafts"]) for course in answer.rounds
    )


def _num_proposed(answer: MeasuredAnswer, drafter: str) -> int:
    """Nodes of verified trees that a drafter had proposed."""
    return answer.drafters.get(drafter, {}).get("proposed", 0)


@contextlib.contextmanager
def _slowed(pid: int) -> Iterator[None]:
    """A process that has a tenth of its time."""
    is_over = threading.Event()

    def slow() -> None:
        while not is_over.is_set():
            os.kill(pid, signal.SIGSTOP)
            is_over.wait(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            is_over.wait(RUNNING_S)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_drafter_that_is_far_is_not_waited_for_and_near_again_is_used() -> None:
    async def story() -> None:
        async with _talk(("generalist",), "auto") as talk:
            (drafter,) = talk.cluster.drafters
            await talk.answers_until(_speculates)

            in_between = await talk.answer_while(lambda: talk.cluster.set_conditions(FAR))
            far = [await talk.answer() for _ in range(2)]
            waits = [wait for answer in (in_between, *far) for wait in _waits(answer, drafter)]
            num_far = sum(
                not wait["num_tokens"] or wait["ended_s"] - wait["asked_s"] >= 2e-3 * FAR.delay_ms
                for wait in waits
            )
            assert num_far <= MOST_WAITS
            assert far[-1].plan.startswith("K=0")
            assert not _speculates(far[-1])

            await talk.answer_while(lambda: talk.cluster.set_conditions(NEAR))
            await talk.answers_until(_speculates)

    run_patiently(story())


def test_of_two_drafters_the_one_that_is_slowed_to_a_tenth_loses_its_place() -> None:
    async def story() -> None:
        async with _talk(("generalist", "generalist")) as talk:
            first = await talk.answers_until(_speculates)
            quick, slow = sorted(talk.cluster.drafters, key=lambda name: _num_asked(first, name))
            await _expect_to_lose_its_place(talk, slow, quick)
            await _expect_to_lose_its_place(talk, quick, slow)

    run_patiently(story())


async def _expect_to_lose_its_place(talk: _Talk, slow: str, quick: str) -> None:
    """Slow one of two drafters down for some answers, which find the other, slow before or not."""

    def follows(answer: MeasuredAnswer) -> bool:
        is_left = _num_asked(answer, slow) < _num_asked(answer, quick) / 2
        return is_left and _speculates(answer)

    with contextlib.ExitStack() as slowness:

        async def slow_down() -> None:
            slowness.enter_context(_slowed(talk.cluster.local.pid(slow)))

        answers = [await talk.answer_while(slow_down), await talk.answers_until(follows)]
    assert sum(_num_given_up(answer, slow) for answer in answers) <= MOST_WAITS


def test_liar_is_left_out_and_does_no_harm(tmp_path: Path) -> None:
    async def story() -> None:
        async with _talk((str(write_adversarial_drafter(tmp_path)), "generalist")) as talk:
            adversary, honest = talk.cluster.drafters
            assert adversary.startswith(ADVERSARIAL)
            answer = await talk.answers_until(_speculates)
            assert len(_waits(answer, adversary)) <= MOST_WAITS
            assert _num_proposed(answer, adversary) < _num_proposed(answer, honest) / 10

            await talk.cluster.local.stop(honest)
            await talk.answer()
            answer = await talk.answer()
            assert answer.plan.startswith("K=0")
            assert len(_waits(answer, adversary)) <= MOST_WAITS
            assert _num_proposed(answer, adversary) <= MOST_WAITS

    run_patiently(story())
