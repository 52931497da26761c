"""What a session's rounds report to the statistics and send to drafters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from edgecosine.fusion.acceptance_rates import RequestRates
from edgecosine.protocol.api.request import Request
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, TargetHarness, harness, outlasting
from tests.support.engines import ScriptedDrafter, ScriptedTarget, babble

LANGUAGE = babble()


def asked(policy: str = "edgecosine", max_tokens: int = 40) -> Request:
    return Request("a", "1", "ask", "To be", max_tokens=max_tokens, policy=policy)


def drafters(count: int) -> list[Drafter]:
    return [Drafter(ScriptedDrafter(LANGUAGE)) for _ in range(count)]


@dataclass
class Call:
    """A recorded call."""

    args: tuple[Any, ...]
    terms: dict[str, Any]


def record_calls(owner: object, name: str) -> list[Call]:
    """Record all calls of a method, which still runs."""
    calls: list[Call] = []
    method = getattr(owner, name)

    def note(*args: Any, **terms: Any) -> Any:
        calls.append(Call(args, terms))
        return method(*args, **terms)

    setattr(owner, name, note)
    return calls


def test_requests_without_a_wait_end_with_the_result() -> None:
    """A drafter that never answers is not late if no round waited for it."""

    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE), drafters(1)) as home:
            home.links["drafter-0"].held = asyncio.Event()
            late = record_calls(home.planner.statistics, "observe_late")
            answer = await home.answer(asked(max_tokens=2))
            assert home.links["drafter-0"].asked
            assert late == []
            assert answer.metrics.drafters == {}

    run(main())


@pytest.mark.parametrize(("policy", "is_disturbed"), [("specinfer", True), ("colocated", False)])
def test_concurrent_answers_are_observed_as_disturbed(policy: str, *, is_disturbed: bool) -> None:
    """Probes always are; drafts that a round waits for are if it asks more than one drafter."""

    async def observations(home: TargetHarness) -> list[bool]:
        calls = record_calls(home.planner.statistics, "observe_answer")
        await home.answer(asked(policy))
        return [call.terms["is_disturbed"] for call in calls]

    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE), drafters(2)) as home:
            observed = await observations(home)
            assert observed[0]  # the other probe may end with the prefill
            if is_disturbed:
                assert all(observed)
            else:
                assert False in observed

    run(main())


def test_first_answer_of_a_lone_drafter_is_disturbed() -> None:
    """The target reads the prompt at the same time."""

    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE), drafters(1)) as home:
            calls = record_calls(home.planner.statistics, "observe_answer")
            await home.answer(asked())
            observed = [call.terms["is_disturbed"] for call in calls]
            assert observed[0]
            assert False in observed

    run(main())


def test_bookkeeping_of_each_round_is_observed() -> None:
    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE), drafters(1)) as home:
            calls = record_calls(home.planner.statistics, "observe_bookkeeping")
            answer = await home.answer(asked())
            assert len(calls) == answer.metrics.num_rounds
            assert all(call.args[0] > 0.0 for call in calls)

    run(main())


@pytest.mark.parametrize("is_alone", [True, False])
def test_only_a_lone_request_doubts_a_drafter_whose_drafts_ahead_miss(
    monkeypatch: pytest.MonkeyPatch, *, is_alone: bool
) -> None:
    missed: list[str] = []
    monkeypatch.setattr(RequestRates, "note_missed", lambda _, drafter: missed.append(drafter))

    async def main() -> None:
        after_drafts = outlasting(lambda: home.links["drafter-0"])
        target = ScriptedTarget(LANGUAGE, before_pass=after_drafts)
        often_wrong = Drafter(ScriptedDrafter(LANGUAGE, hits=0.5, confidence=0.9))
        async with harness(target, [often_wrong]) as home:
            if not is_alone:
                home.planner.statistics.open("edgecosine-without-adaptivity")
            await home.answer(asked("edgecosine-without-adaptivity", max_tokens=120))
        assert {*missed} == ({"drafter-0"} if is_alone else set())

    run(main())
