"""The draft worker: batches requests, answers their newest rounds, keeps prefixes in step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork, never
from edgecosine.errors import LinkLost
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.runtime import held_prefixes as rules
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_tokens,
    prefix_digest,
    unpack_tokens,
)
from edgecosine.protocol.wire.prompt_score import PromptScore
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.node.links.wire_fixtures import run
from tests.support.engines import Language, ScriptedDrafter, babble

LANGUAGE = babble()
PREFIX = list(b"to be")


def ask(
    prefix: list[int],
    *,
    key: str = "r",
    held: int = 0,
    number: int = 0,
    is_ahead: bool = False,
    is_probe: bool = False,
    size: int = 3,
) -> DraftRequest:
    """A request for a prefix of which the drafter should hold `held` tokens."""
    return DraftRequest(
        key, number, len(prefix), prefix_digest(prefix), pack_tokens(prefix[held:]), size,
        is_ahead=is_ahead, is_probe=is_probe,
    )  # fmt: skip


class Post:
    """Collects answers; a test may wait for a number of them."""

    def __init__(self) -> None:
        self.answers: list[AnyMessage] = []
        self._came = asyncio.Event()

    def __call__(self, message: AnyMessage) -> None:
        self.answers.append(message)
        self._came.set()

    async def drafts(self, count: int) -> list[Draft]:
        """The first `count` answers, all of them drafts."""
        while len(self.answers) < count:
            self._came.clear()
            await self._came.wait()
        drafts = [each for each in self.answers if isinstance(each, Draft)]
        assert len(drafts) == len(self.answers) == count
        return drafts


@asynccontextmanager
async def at_work(worker: DraftWorker) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run())
        yield
        task.cancel()


class PatientDrafter(ScriptedDrafter):
    """Drafts ahead until a target waits."""

    def __init__(self, language: Language) -> None:
        super().__init__(language)
        self.begun = threading.Event()

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        if batch[0].ahead is not None:
            self.begun.set()
            while not is_interrupted(0):
                pass
        return super().draft(batch)


class SteppingDrafter(ScriptedDrafter):
    """Makes steps that complete no draft until it is interrupted, after the first of which another
    request comes; records the batches."""

    def __init__(self, language: Language) -> None:
        super().__init__(language)
        self.begun = threading.Event()
        self.has_joined = threading.Event()
        self.steps: list[list[tuple[str, int]]] = []

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        self.steps.append([(work.key, work.num_steps) for work in batch])
        self.begun.set()
        drafts = super().draft(batch)
        if len(self.steps) > 1:
            return drafts
        assert not is_interrupted(0)
        assert self.has_joined.wait(10)
        assert is_interrupted(0)
        score = PromptScore((True, False), 3.0)
        return [
            replace(each, is_complete=False, num_steps=1, prompt_score=score) for each in drafts
        ]


def drafting_with(engine: DraftEngine, thread: EngineThread, max_batch: int = 4) -> DraftWorker:
    return DraftWorker(engine=engine, thread=thread, max_batch=max_batch)


def test_draft_is_the_engines_continuation_of_the_prefix() -> None:
    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(ScriptedDrafter(LANGUAGE, confidence=0.5), thread)
            async with at_work(worker):
                worker.on_request(ask(PREFIX, number=7), post)
                [draft] = await post.drafts(1)
        sequence = list(PREFIX)
        for token in unpack_tokens(draft.tokens):
            assert token == LANGUAGE(sequence, Sampling())
            sequence.append(token)
        assert (draft.request_id, draft.round, draft.is_ahead) == ("r", 7, False)
        assert draft.confidences == bytes([128] * 3)
        assert draft.parents == b""
        assert worker.num_tokens == 3

    run(main())


@pytest.mark.parametrize("is_probe", [False, True])
def test_draft_that_no_round_awaits_joins_others_between_two_steps(is_probe: bool) -> None:
    async def main() -> None:
        post, engine = Post(), SteppingDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            async with at_work(worker):
                worker.on_request(ask(PREFIX, key="a", is_ahead=True, size=5), post)
                await asyncio.to_thread(engine.begun.wait)
                joining = ask(PREFIX, key="b", is_ahead=not is_probe, is_probe=is_probe)
                worker.on_request(joining, post)
                engine.has_joined.set()
                drafts = await post.drafts(2)
        assert engine.steps == [[("a", 0)], [("a", 1), ("b", 0)]]
        assert [(each.request_id, each.top1_matches, each.nll) for each in drafts] == [
            ("a", b"\x01\x00", 3.0),
            ("b", b"", 0.0),
        ]

    run(main())


def test_draft_is_answered_when_its_time_is_up() -> None:
    class EndlessDrafter(ScriptedDrafter):
        def draft(
            self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
        ) -> list[DraftResult]:
            while not is_interrupted(0):
                pass
            return [replace(each, is_complete=False) for each in super().draft(batch)]

    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(EndlessDrafter(LANGUAGE), thread)
            async with at_work(worker):
                timed = msgspec.structs.replace(ask(PREFIX, is_ahead=True), within_us=20_000)
                worker.on_request(timed, post)
                [draft] = await post.drafts(1)
        assert len(draft.tokens) == 4 * 3
        assert draft.num_steps > 0

    run(main())


def test_draft_reports_the_steps_that_its_time_was_spent_on() -> None:
    """An engine that has counted none in any draft may not count at all."""

    class CountingDrafter(ScriptedDrafter):
        def draft(
            self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
        ) -> list[DraftResult]:
            for _ in range(batch[0].num_tokens // 2):
                is_interrupted(0)
            return super().draft(batch)

    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            for engine in (ScriptedDrafter(LANGUAGE), CountingDrafter(LANGUAGE)):
                worker = drafting_with(engine, thread)
                async with at_work(worker):
                    for number, tokens in ((1, 6), (2, 1)):
                        worker.on_request(ask(PREFIX, number=number, size=tokens), post)
                        await post.drafts(len(post.answers) + 1)
            drafts = await post.drafts(4)
        assert [draft.num_steps for draft in drafts] == [-1, -1, 3, 0]

    run(main())


def test_drafter_out_of_step_reports_its_prefix_and_recovers() -> None:
    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(ScriptedDrafter(LANGUAGE), thread)
            worker.on_request(ask([*PREFIX, 1, 2], held=5), post)
            worker.on_request(ask(PREFIX), post)
            worker.on_request(ask([*PREFIX, 1, 2], held=7, number=1), post)
            worker.on_request(ask([*PREFIX[:-1], 9, 1], held=5, number=2), post)
            assert post.answers == [
                OutOfStep("r", 0, 0),
                OutOfStep("r", 1, 5),
                OutOfStep("r", 2, 0),
            ]
            post.answers.clear()
            async with at_work(worker):
                worker.on_request(ask([*PREFIX, 1, 2], held=5, number=3), post)
                [draft] = await post.drafts(1)
                assert draft.round == 3

    run(main())


def test_newer_round_replaces_older_ones_that_wait() -> None:
    async def main() -> None:
        post, engine = Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            for number in range(4):
                worker.on_request(ask([*PREFIX, number], number=number), post)
            async with at_work(worker):
                [draft] = await post.drafts(1)
            assert draft.round == 3
            assert worker.num_stale == 3
            assert sum(map(len, engine.batches)) == 1

    run(main())


def test_awaited_requests_are_drafted_before_requests_ahead() -> None:
    async def main() -> None:
        post, engine = Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            for key in "abc":
                worker.on_request(ask(PREFIX, key=key, is_ahead=key != "c"), post)
            async with at_work(worker):
                drafts = await post.drafts(3)
        assert [(draft.request_id, draft.is_ahead) for draft in drafts] == [
            ("c", False),
            ("a", True),
            ("b", True),
        ]
        assert [[work.key for work in batch] for batch in engine.batches] == [["c"], ["a", "b"]]

    run(main())


def test_draft_ahead_ends_when_a_target_waits() -> None:
    async def main() -> None:
        post, engine = Post(), PatientDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            async with at_work(worker):
                worker.on_request(ask(PREFIX, is_ahead=True), post)
                await asyncio.get_running_loop().run_in_executor(None, engine.begun.wait)
                worker.on_request(ask([*PREFIX, 1], held=5, number=1), post)
                drafts = await post.drafts(2)
        assert [draft.round for draft in drafts] == [0, 1]

    run(main())


@pytest.mark.parametrize("tokens", [[5, 1 << 30], [5, 6, 7], [5, 5]])
def test_invalid_tree_counts_as_empty(tokens: list[int]) -> None:
    async def main() -> None:
        post, engine = Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = DraftWorker(engine=engine, thread=thread, max_batch=1, num_vocabulary=300)
            asked = msgspec.structs.replace(
                ask(PREFIX, is_ahead=True), tree_tokens=pack_tokens(tokens),
                tree_parents=bytes(2), tree_confidences=bytes(2),
            )  # fmt: skip
            async with at_work(worker):
                worker.on_request(asked, post)
                await post.drafts(1)
        assert engine.batches[0][0].ahead == EMPTY_TREE

    run(main())


@pytest.mark.parametrize(
    ("shares", "expected"), [(b"\xff\x00\x33", (1.0, 0.0, 0.2)), (b"\xff", ()), (b"", ())]
)
def test_endpoint_shares_are_passed_on_if_they_fit_the_tree(
    shares: bytes, expected: tuple[float, ...]
) -> None:
    async def main() -> None:
        with EngineThread("drafter") as thread:
            engine, post = ScriptedDrafter(LANGUAGE), Post()
            worker = drafting_with(engine, thread)
            message = msgspec.structs.replace(
                ask(PREFIX, is_ahead=True), tree_tokens=pack_tokens([97, 98]),
                tree_confidences=b"\xff\xff", outcome_shares=shares,
            )  # fmt: skip
            async with at_work(worker):
                worker.on_request(message, post)
                await post.drafts(1)
        assert engine.batches[0][0].shares == expected

    run(main())


def test_waiting_requests_are_batched_oldest_first() -> None:
    async def main() -> None:
        post, engine = Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread, max_batch=4)
            for number in range(6):
                worker.on_request(ask([*PREFIX, number], key=str(number)), post)
            async with at_work(worker):
                drafts = await post.drafts(6)
        assert [draft.request_id for draft in drafts] == list("012345")
        assert [[work.key for work in batch] for batch in engine.batches] == [
            list("0123"),
            list("45"),
        ]

    run(main())


def test_answer_to_an_ended_link_is_dropped() -> None:
    def gone(_: AnyMessage) -> None:
        raise LinkLost("gone")

    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(ScriptedDrafter(LANGUAGE), thread)
            worker.on_request(ask(PREFIX, key="away"), gone)
            worker.on_request(ask([*PREFIX, 1], key="lost", held=5), gone)
            worker.on_request(ask(PREFIX, key="here"), post)
            async with at_work(worker):
                [draft] = await post.drafts(1)
                worker.on_request(ask([*draft_sequence(draft), 1], key="here", number=1), post)
                await post.drafts(2)

    run(main())


def draft_sequence(draft: Draft) -> list[int]:
    return [*PREFIX, *unpack_tokens(draft.tokens)]


@pytest.mark.parametrize("is_link_lost", [True, False])
def test_ended_request_leaves_no_state(is_link_lost: bool) -> None:
    async def main() -> None:
        ended, post, engine = Post(), Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            async with at_work(worker):
                worker.on_request(ask(PREFIX), post)
                await post.drafts(1)
                assert engine.held == {"r"}
                worker.on_request(ask([*PREFIX, 1], number=1), ended)
                if is_link_lost:
                    worker.drop_all()
                else:
                    worker.on_request(Release("r"), ended)
                assert repr(worker) == "<DraftWorker [0 waiting, 0 requests]>"
                worker.on_request(ask(PREFIX, key="next"), post)
                await post.drafts(2)
            assert ended.answers == []
            assert engine.held == {"next"}

    run(main())


@pytest.mark.parametrize("is_in_step", [True, False])
def test_least_recently_used_request_is_dropped_first(is_in_step: bool) -> None:
    """Requests of any peer, in step or not, use bounded memory."""

    async def main() -> None:
        post, many = Post(), Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(ScriptedDrafter(LANGUAGE), thread)
            worker.on_request(ask(PREFIX, key="old"), post)
            for number in range(rules.MAX_REQUESTS + 5):
                if number == rules.MAX_REQUESTS - 5:
                    worker.on_request(ask(PREFIX, key="0", held=5 * is_in_step), many)
                worker.on_request(ask(PREFIX, key=str(number), held=5 * (not is_in_step)), many)
            assert f"{rules.MAX_REQUESTS} requests" in repr(worker)
            late = Post()
            worker.on_request(ask([*PREFIX, 1], key="old", held=5), late)
            assert late.answers == [OutOfStep("old", 0, 0)]
            worker.on_request(ask([*PREFIX, 1], key="0", held=5), late)
            assert len(late.answers) == 1

    run(main())


def test_target_with_many_requests_does_not_displace_others() -> None:
    async def main() -> None:
        many, post, engine = Post(), Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            for number in range(rules.MAX_REQUESTS - 1):
                worker.on_request(ask(PREFIX, key=str(number)), many, "hostile")
            worker.on_request(ask(PREFIX, key="r"), post, "honest")
            for number in range(2 * rules.MAX_REQUESTS):
                worker.on_request(ask(PREFIX, key=f"more-{number}"), many, "hostile")
            async with at_work(worker):
                await post.drafts(1)
                assert engine.batches[0][0].key == "r@honest"
                worker.on_request(ask([*PREFIX, 1], held=len(PREFIX), number=1), post, "honest")
                await post.drafts(2)

    run(main())


def test_target_cannot_affect_the_requests_of_another() -> None:
    async def main() -> None:
        post, other, engine = Post(), Post(), ScriptedDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            worker.on_request(ask(PREFIX), post, "honest")
            worker.on_request(ask([9, 9, 9], number=5), other, "hostile")
            worker.on_request(Release("r"), other, "hostile")
            async with at_work(worker):
                await post.drafts(1)
                worker.on_request(ask([*PREFIX, 1], held=len(PREFIX), number=1), post, "honest")
                await post.drafts(2)
        assert not other.answers

    run(main())


def test_flood_of_releases_runs_no_draft() -> None:
    async def main() -> None:
        post, engine = Post(), CountingDrafter(LANGUAGE)
        with EngineThread("drafter") as thread:
            worker = drafting_with(engine, thread)
            for number in range(2 * rules.MAX_REQUESTS):
                worker.on_request(Release(f"unknown-{number}"), post)
                worker.on_request(ask(PREFIX, key=f"known-{number}"), post)
                worker.on_request(Release(f"known-{number}"), post)
            async with at_work(worker):
                worker.on_request(ask(PREFIX), post)
                await post.drafts(1)
        assert len(engine.released) == rules.MAX_REQUESTS
        assert all(key.startswith("known") for key in engine.released)

    run(main())


class CountingDrafter(ScriptedDrafter):
    """Records released keys."""

    def __init__(self, language: Language) -> None:
        super().__init__(language)
        self.released: list[str] = []

    def release(self, key: str) -> None:
        self.released.append(key)
        super().release(key)


def test_tokens_beyond_the_vocabulary_are_never_passed_to_the_model() -> None:
    async def main() -> None:
        replies: list[AnyMessage] = []
        engine = ScriptedDrafter(babble())
        with EngineThread("test") as thread:
            worker = DraftWorker(engine=engine, thread=thread, max_batch=4, num_vocabulary=50)
            worker.on_request(ask([1, 2, 50]), replies.append)
            assert [type(reply) for reply in replies] == [OutOfStep]
            worker.on_request(ask([1, 2, 49]), replies.append)
            assert len(replies) == 1

    run(main())


class FailingDrafter(ScriptedDrafter):
    """Fails at some requests in any batch, and returns NaN confidences for others."""

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        if any(work.key == "bad" for work in batch):
            raise StopIteration if len(batch) == 1 else IndexError
        drafts = super().draft(batch)
        no_number = DraftResult((1,), (float("nan"),))
        return [
            no_number if work.key == "nan" else proposal
            for work, proposal in zip(batch, drafts, strict=True)
        ]


def test_failed_draft_is_empty_and_others_are_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(FailingDrafter(LANGUAGE), thread)
            for number in range(2):
                for key in ("a", "bad", "b", "nan"):
                    worker.on_request(ask(PREFIX, key=key, number=number), post)
                async with at_work(worker):
                    drafts = await post.drafts(4)
                lengths = {draft.request_id: len(draft.confidences) for draft in drafts}
                assert lengths == {"a": 3, "b": 3, "bad": 0, "nan": 0}
                post.answers.clear()

    run(main())
    assert len(caplog.records) == 2  # one per kind of error


def test_message_that_fails_on_arrival_gets_an_empty_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> list[int]:
        raise ValueError("no tokens")

    async def main() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = drafting_with(ScriptedDrafter(LANGUAGE), thread)
            with monkeypatch.context() as patch:
                patch.setattr(rules, "unpack_tokens", fail)
                worker.on_request(ask(PREFIX), post)
            [draft] = await post.drafts(1)
            assert draft.tokens == b""

    run(main())
