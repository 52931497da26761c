"""The planner adapts when a real drafter becomes distant, slow or hostile during an answer.

The tests count rounds, not seconds. Every text must be the target's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.balance.probes import PROBE_EVERY
from edgecosine.cli.up import split_cores
from edgecosine.lab.adversarial_drafter import ADVERSARIAL, write_adversarial_drafter
from edgecosine.lab.cluster import LabCluster, LabPlan, lab_cluster
from edgecosine.lab.load_generator import ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.lab.network.conditions import NetworkConditions
from tests.support.forked_nodes import spawn
from tests.support.mqtt import run_patiently

TARGET_CORES, DRAFTER_CORES = split_cores()
NEAR = NetworkConditions(delay_ms=0.15)
FAR = NetworkConditions(delay_ms=250)
"""A round trip of half a second: too long for a draft, even on a busy machine whose target takes
ten times as long as on an idle one."""
POLICY = "edgecosine-without-ngrams"
"""Asks drafters although the target has given the same answer before."""
MAX_TOKENS = 64
MIDDLE = 4
"""Stream parts of an answer before the change."""
MAX_WAITS = 8
"""Rounds that wait for a missing draft: two until the drafter rests, one more after 24, 48, 96...
plans."""
MAX_ANSWERS = 60
"""Answers until a recovered drafter is used as before. A lone request pays for trials from a share
of its plain rounds, 0.2% while they are in vain: with the largest debt and price 3,000 rounds."""
STOPPED_S, RUNNING_S = 0.098, 0.002
"""A stop is longer than a pass on a busy machine, so that drafting ahead cannot hide it."""

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not DRAFTER_CORES, reason="target and drafters need a processor each"),
]

Change = Callable[[], Coroutine[Any, Any, None]]


class _Requests:
    """Sends one cluster the same request repeatedly and checks that its text never changes."""

    def __init__(self, cluster: LabCluster) -> None:
        self.cluster = cluster
        self._prompt = zoo.prompts()["home"][0]
        self._text = ""

    async def begin(self) -> None:
        """Store the text without drafters, and let the planner measure the drafters."""
        self._text = (await self._ask("target-alone")).text
        await self.answer()

    async def answer(self) -> MeasuredAnswer:
        """One answer."""
        return self._checked(await self._ask(POLICY))

    async def answer_while(self, change: Change) -> MeasuredAnswer:
        """An answer during which `change` runs."""
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
            answer = await self._ask(POLICY, on_text)
        return self._checked(answer)

    async def answers_until(self, condition: Callable[[MeasuredAnswer], bool]) -> MeasuredAnswer:
        """The first answer for which `condition` holds; at most `MAX_ANSWERS` are tried."""
        plans = []
        for _ in range(MAX_ANSWERS):
            answer = await self.answer()
            if condition(answer):
                return answer
            plans.append((answer.plan, answer.num_accepted, answer.num_rounds))
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
async def _cluster(*drafters: str) -> AsyncIterator[_Requests]:
    plan = LabPlan(
        drafters, conditions=NEAR, network="relays",
        target_cores=TARGET_CORES, drafter_cores=DRAFTER_CORES,
    )  # fmt: skip
    async with lab_cluster(plan, print, spawn=spawn) as cluster:
        requests = _Requests(cluster)
        await requests.begin()
        yield requests


def _speculates(answer: MeasuredAnswer) -> bool:
    """Whether more drafts are accepted than probes alone, every sixth round, can give."""
    return answer.num_accepted > answer.num_rounds


def _waits(answer: MeasuredAnswer, drafter: str) -> list[dict[str, Any]]:
    """Drafts of one drafter for which a round waited."""
    return [
        draft
        for trace in answer.rounds
        for draft in trace["drafts"]
        if draft["drafter"] == drafter and draft["asked_s"] < trace["submitted_s"]
    ]


def _num_vain_waits(answer: MeasuredAnswer, drafter: str) -> int:
    """Rounds that waited for a drafter without receiving a token."""
    return sum(not draft["num_tokens"] for draft in _waits(answer, drafter))


def _num_asked(answer: MeasuredAnswer, drafter: str) -> int:
    """Rounds with any request to a drafter: for the round, ahead of it, or as a probe."""
    return sum(
        any(draft["drafter"] == drafter for draft in trace["drafts"]) for trace in answer.rounds
    )


def _num_proposed(answer: MeasuredAnswer, drafter: str) -> int:
    """Nodes of verified trees that came from a drafter."""
    return answer.drafters.get(drafter, {}).get("proposed", 0)


@contextlib.contextmanager
def _slowed(pid: int) -> Iterator[None]:
    """A process that runs for a fiftieth of the time."""
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


def test_distant_drafter_is_dropped_and_used_again_when_it_is_near() -> None:
    async def scenario() -> None:
        async with _cluster("generalist") as requests:
            (drafter,) = requests.cluster.drafters
            await requests.answers_until(_speculates)

            during = await requests.answer_while(lambda: requests.cluster.set_conditions(FAR))
            far = [await requests.answer() for _ in range(2)]
            waits = [wait for answer in (during, *far) for wait in _waits(answer, drafter)]
            num_far = sum(
                not wait["num_tokens"] or wait["ended_s"] - wait["asked_s"] >= 2e-3 * FAR.delay_ms
                for wait in waits
            )
            assert num_far <= MAX_WAITS
            assert far[-1].plan.startswith("K=0")
            assert not _speculates(far[-1])

            await requests.answer_while(lambda: requests.cluster.set_conditions(NEAR))
            await requests.answers_until(_speculates)

    run_patiently(scenario())


def test_slowed_drafter_is_replaced_by_the_other() -> None:
    async def scenario() -> None:
        async with _cluster("generalist", "generalist") as requests:
            first = await requests.answers_until(_speculates)
            quick, slow = sorted(
                requests.cluster.drafters, key=lambda name: _num_asked(first, name)
            )
            await _expect_replacement(requests, slow, quick)
            await _expect_replacement(requests, quick, slow)

    run_patiently(scenario())


async def _expect_replacement(requests: _Requests, slow: str, quick: str) -> None:
    """Slow one of two drafters down, and expect that the planner prefers the other."""

    def is_replaced(answer: MeasuredAnswer) -> bool:
        is_left = _num_asked(answer, slow) < _num_asked(answer, quick) / 2
        return is_left and _speculates(answer)

    with contextlib.ExitStack() as slowness:

        async def slow_down() -> None:
            slowness.enter_context(_slowed(requests.cluster.local.pid(slow)))

        answers = [
            await requests.answer_while(slow_down),
            await requests.answers_until(is_replaced),
        ]
    assert sum(_num_vain_waits(answer, slow) for answer in answers) <= MAX_WAITS


def test_adversarial_drafter_is_left_out_and_changes_no_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with _cluster(str(write_adversarial_drafter(tmp_path)), "generalist") as requests:
            adversary, honest = requests.cluster.drafters
            assert adversary.startswith(ADVERSARIAL)
            answer = await requests.answers_until(_speculates)
            assert len(_waits(answer, adversary)) <= MAX_WAITS
            assert _num_proposed(answer, adversary) < _num_proposed(answer, honest) / 10

            await requests.cluster.local.stop(honest)
            await requests.answer()
            answer = await requests.answer()
            assert answer.plan.startswith("K=0")
            assert len(_waits(answer, adversary)) <= MAX_WAITS
            assert _num_asked(answer, adversary) <= 1 + math.ceil(answer.num_rounds / PROBE_EVERY)

    run_patiently(scenario())
