"""The verifier: batches ready sessions, prefills beside rounds, fails all works at its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from edgecosine.balance.baselines.batching import ByObjective, OneGroup
from edgecosine.balance.batch_wait import ExpectedArrival
from edgecosine.balance.cost_model import PassReport
from edgecosine.engine.base import BatchRule, VerificationResult, VerifyWork
from edgecosine.errors import ActorStopped, EngineError
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE, chain
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, alone, babble

LANGUAGE = babble()


def work(key: str, size: int = 4, batching: BatchRule | None = None) -> VerifyWork:
    tokens = tuple(b"abcd" * size)[:size]
    return VerifyWork(key, tokens, len(tokens), EMPTY_TREE, Sampling(), batching=batching)


def result(asked: VerifyWork) -> VerificationResult:
    """The target's result for an empty tree."""
    return VerificationResult((), LANGUAGE(asked.tokens, Sampling()))


class Costs:
    """Records passes; delays them only by a given time."""

    def __init__(self, batch_wait_s: float = 0.0) -> None:
        self.seen: list[PassReport] = []
        self.is_holding = asyncio.Event()
        self._batch_wait_s = batch_wait_s

    def observe_pass(self, report: PassReport) -> None:
        self.seen.append(report)

    def pass_s(self, num_rows: int) -> float:
        return 1.0

    def worked_beside_s(self, moment: float) -> float:
        return 0.0

    def batch_wait_s(self, _num_rows: int, _arrivals: Sequence[ExpectedArrival]) -> float | None:
        if not self._batch_wait_s:
            return None
        self.is_holding.set()
        return self._batch_wait_s


class Gate:
    """Blocks the engine's thread before passes of real works until `open`."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

    def __call__(self, _number: int, keys: list[str]) -> None:
        if keys != ["profile"]:
            self.entered.set()
            assert self._open.wait(10)

    async def reached(self) -> None:
        """Wait until the engine is in a pass."""
        assert await asyncio.to_thread(self.entered.wait, 10)

    def open(self) -> None:
        """Let all passes run."""
        self._open.set()


def test_works_that_arrive_during_a_pass_share_the_next_one() -> None:
    gate, costs = Gate(), Costs()
    target = ScriptedTarget(LANGUAGE, before_pass=gate)

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = Verifier(
                engine=target,
                thread=thread,
                max_batch=3,
                costs=costs,
            )
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                tasks = [group.create_task(verifier.verify(work("0")))]
                await gate.reached()
                tasks += [group.create_task(verifier.verify(work(str(n)))) for n in range(1, 6)]
                await asyncio.sleep(0)
                gate.open()
                for number, task in enumerate(tasks):
                    assert await task == result(work(str(number)))
                running.cancel()
            assert verifier.num_passes == 3

    run(main())
    batches = [batch for batch in target.batches if batch != ["profile"]]
    assert batches == [["0"], ["1", "2", "3"], ["4", "5"]]
    assert "profile" not in target.fed
    assert [report.num_rows for report in costs.seen[-3:]] == [4, 12, 8]
    assert [report.num_prompt_rows for report in costs.seen[-3:]] == [3, 9, 6]
    assert all(0 <= report.elapsed_s <= report.cycle_s for report in costs.seen[-3:])


def test_begin_of_a_pass_is_awaited_but_not_its_end() -> None:
    gate = Gate()

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = _verifier(ScriptedTarget(LANGUAGE, before_pass=gate), thread)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                verdict = verifier.submit(work("0"))
                await verifier.begun(verdict)
                assert not verdict.done()
                gate.open()
                assert await verdict == result(work("0"))
                running.cancel()

    run(main())


def test_begin_of_a_pass_that_never_runs_is_not_awaited_forever() -> None:
    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = _verifier(ScriptedTarget(LANGUAGE), thread)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                await verifier.verify(work("0"))
                verdict = verifier.submit(work("1"))
                running.cancel()
                await verifier.begun(verdict)
            with pytest.raises(ActorStopped):
                await verdict

    run(main())


@pytest.mark.parametrize(
    ("rules", "batches"),
    [
        ([OneGroup(0), OneGroup(1)] * 2, [["1", "3"], ["2", "4"]]),
        ([OneGroup(0), None, OneGroup(0), None], [["1", "3"], ["2", "4"]]),
        ([ByObjective(0.0)] * 4, [["1", "2", "3", "4"]]),
    ],
)
def test_pass_takes_works_with_the_rule_of_the_oldest(
    rules: list[BatchRule | None], batches: list[list[str]]
) -> None:
    gate = Gate()
    target = ScriptedTarget(LANGUAGE, before_pass=gate)

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = Verifier(engine=target, thread=thread, max_batch=8, costs=Costs())
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                tasks = [group.create_task(verifier.verify(work("0")))]
                await gate.reached()
                for number, rule in enumerate(rules, 1):
                    asked = work(str(number), batching=rule)
                    tasks.append(group.create_task(verifier.verify(asked)))
                await asyncio.sleep(0)
                gate.open()
                for number, task in enumerate(tasks):
                    assert await task == result(work(str(number)))
                running.cancel()

    run(main())
    assert [batch for batch in target.batches if batch not in (["profile"], ["0"])] == batches


def test_each_cycle_is_split_into_busy_and_idle_time() -> None:
    costs = Costs()

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = Verifier(
                engine=ScriptedTarget(LANGUAGE), thread=thread, max_batch=4, costs=costs
            )
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                for number in range(3):
                    await verifier.verify(work(str(number)))
                    busy_s, idle_s = verifier.busy_s, verifier.idle_s
                    await asyncio.sleep(0)
                    assert (verifier.busy_s, verifier.idle_s) == (busy_s, idle_s)
                running.cancel()
            passes = costs.seen[-3:]
            assert verifier.num_passes == 3
            assert verifier.last_pass_s == passes[-1].elapsed_s > 0
            assert verifier.busy_s == pytest.approx(sum(each.elapsed_s for each in passes))
            assert verifier.busy_s + verifier.idle_s == pytest.approx(
                sum(each.cycle_s for each in passes)
            )

    run(main())


def test_prefilling_session_stays_in_the_batch_beside_the_others_rounds() -> None:
    async def main() -> list[list[str]]:
        target = ScriptedTarget(LANGUAGE, chunk=4)
        async with harness(target) as home:
            short = Request("a", "short", "ask", "x", max_tokens=12)
            long = Request("a", "long", "ask", "y" * 24, max_tokens=2)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(home.answer(each)) for each in (short, long)]
            texts = [task.result().text for task in tasks]
            assert texts == [alone(LANGUAGE, each).text for each in (short, long)]
        return [batch for batch in target.batches if batch != ["profile"]]

    batches = run(main())
    first = next(number for number, batch in enumerate(batches) if "a/long" in batch)
    during_prefill = batches[first : first + 6]
    assert all("a/long" in batch for batch in during_prefill)
    # How many depends on the machine: a round that takes too long misses a pass.
    assert any("a/short" in batch for batch in during_prefill[1:])


def test_work_of_a_cancelled_session_is_in_no_further_pass() -> None:
    gate = Gate()
    target = ScriptedTarget(LANGUAGE, chunk=1, before_pass=gate)

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = _verifier(target, thread)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                leaver = group.create_task(verifier.verify(work("leaver", 50)))
                await gate.reached()
                waiting = group.create_task(verifier.verify(work("waiting")))
                stayer = group.create_task(verifier.verify(work("stayer")))
                await asyncio.sleep(0)
                leaver.cancel()
                waiting.cancel()
                verifier.release("leaver")
                gate.open()
                assert await stayer == result(work("stayer"))
                running.cancel()

    run(main())
    batches = [batch for batch in target.batches if batch != ["profile"]]
    assert batches[0] == ["leaver"]
    assert all(batch == ["stayer"] for batch in batches[1:])
    assert "leaver" not in target.fed


@pytest.mark.parametrize("is_profile", [True, False])
def test_failed_engine_leaves_no_session_waiting(is_profile: bool) -> None:
    gate = Gate()

    def fail(number: int, keys: list[str]) -> None:
        if keys == ["profile"]:
            if is_profile:
                raise EngineError("no memory")
            return
        gate(number, keys)
        raise EngineError("no memory")

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = _verifier(ScriptedTarget(LANGUAGE, before_pass=fail), thread)

            async def refused(key: str) -> None:
                with pytest.raises(ActorStopped):
                    await verifier.verify(work(key))

            async def broken() -> None:
                with pytest.raises(EngineError):
                    await verifier.run()
                assert verifier.has_failed is not is_profile

            async with asyncio.TaskGroup() as group:
                group.create_task(refused("in the pass"))
                group.create_task(broken())
                if not is_profile:
                    await gate.reached()
                    group.create_task(refused("in the mailbox"))
                    await asyncio.sleep(0)
                    gate.open()
            await refused("too late")

    run(main())


@pytest.mark.parametrize("num_passes", [0, 1, 3])
def test_session_ends_with_a_plain_error_when_the_engine_fails(num_passes: int) -> None:
    target = ScriptedTarget(LANGUAGE, before_pass=_failing_after(num_passes))

    async def main() -> None:
        asked = Request("a", "1", "ask", "x", max_tokens=50)
        setup = Drafter(ScriptedDrafter(LANGUAGE, hits=0.0))
        async with harness(target, [setup], may_fail=True) as home:
            with pytest.raises(ActorStopped):
                await home.answer(asked)
            assert home.links["drafter-0"].released == ["a/1"]

    run(main())


def _failing_after(num_passes: int) -> Callable[[int, list[str]], None]:
    seen = list[int]()

    def before_pass(number: int, keys: list[str]) -> None:
        if keys != ["profile"]:
            seen.append(number)
        if len(seen) > num_passes:
            raise EngineError("no memory")

    return before_pass


def test_stopped_verifier_leaves_no_session_waiting() -> None:
    gate = Gate()

    async def main() -> None:
        with EngineThread("target") as thread:
            verifier = _verifier(ScriptedTarget(LANGUAGE, before_pass=gate), thread)

            async def refused(key: str) -> None:
                with pytest.raises(ActorStopped):
                    await verifier.verify(work(key))

            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                group.create_task(refused("in the pass"))
                await gate.reached()
                group.create_task(refused("in the mailbox"))
                await asyncio.sleep(0)
                running.cancel()
                gate.open()

    run(main())


def test_tree_is_judged_by_the_targets_own_tokens() -> None:
    asked = work("tree")
    right = LANGUAGE(asked.tokens, Sampling())
    tree, costs = chain((right, 0)), Costs()

    async def main() -> list[VerificationResult]:
        with EngineThread("target") as thread:
            verifier = _verifier(ScriptedTarget(LANGUAGE), thread, costs)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(verifier.run())
                given = []
                for last in ((), (right,)):
                    tokens = (*asked.tokens, *last)
                    sent = VerifyWork("tree", tokens, len(asked.tokens), tree, Sampling())
                    given.append(await verifier.verify(sent))
                running.cancel()
            return given

    first, second = run(main())
    assert first == VerificationResult((0,), LANGUAGE([*asked.tokens, right], Sampling()))
    reports = costs.seen[-2:]
    assert [report.num_prompt_rows for report in reports] == [len(asked.tokens) - 1, 0]
    accepted = [len(first.path), len(second.path)]
    assert [report.num_accepted for report in reports] == accepted
    assert [report.num_tokens for report in reports] == [1 + number for number in accepted]


def _verifier(target: ScriptedTarget, thread: EngineThread, costs: Costs | None = None) -> Verifier:
    return Verifier(engine=target, thread=thread, max_batch=4, costs=costs or Costs())


@asynccontextmanager
async def holding(
    batch_wait_s: float, target: ScriptedTarget
) -> AsyncIterator[tuple[Verifier, Costs]]:
    """A verifier whose passes wait for sessions that had a result."""
    costs = Costs(batch_wait_s)
    with EngineThread("target") as thread:
        verifier = Verifier(engine=target, thread=thread, max_batch=4, costs=costs)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(verifier.run())
            yield verifier, costs
            running.cancel()


def test_pass_waits_for_expected_sessions() -> None:
    target = ScriptedTarget(LANGUAGE)

    async def main() -> None:
        async with holding(30.0, target) as (verifier, costs), asyncio.TaskGroup() as group:
            await verifier.verify(work("late"))
            group.create_task(verifier.verify(work("early")))
            await costs.is_holding.wait()
            again = work("late", 5)
            assert await verifier.verify(again) == result(again)

    run(main())
    batches = [batch for batch in target.batches if batch != ["profile"]]
    assert batches == [["late"], ["early", "late"]]


def test_pass_stops_waiting_for_late_and_ended_sessions() -> None:
    async def main() -> None:
        async with holding(0.01, ScriptedTarget(LANGUAGE)) as (verifier, _):
            await verifier.verify(work("gone"))
            assert await verifier.verify(work("here")) == result(work("here"))
            verifier.release("gone")
            assert "1 expected" in repr(verifier)

    run(main())


def test_works_of_a_waiting_pass_fail_with_the_verifier() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:

            async def ask(verifier: Verifier) -> None:
                with pytest.raises(ActorStopped):
                    await verifier.verify(work("early"))

            async with holding(30.0, ScriptedTarget(LANGUAGE)) as (verifier, costs):
                await verifier.verify(work("late"))
                group.create_task(ask(verifier))
                await costs.is_holding.wait()

    run(main())
