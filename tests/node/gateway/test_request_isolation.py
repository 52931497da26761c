"""An exception at any stage of a request ends only this request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgecosine.balance.acceptance_statistics import AcceptanceStatistics
from edgecosine.balance.admission import AdmissionControl
from edgecosine.balance.planner import Planner
from edgecosine.balance.statistics import Statistics
from edgecosine.engine.base import DraftResult, DraftWork, FailedWork, StepResult, VerifyWork
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.errors import ActorStopped
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.gateway import request_runner as answering
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.request_manager import RequestManager
from edgecosine.node.gateway.request_runner import RequestRunner
from edgecosine.node.gateway.request_table import RequestTable
from edgecosine.node.gateway.session_slots import SessionSlots
from edgecosine.node.target.draft_client import DraftClient
from edgecosine.node.target.engine_watchdog import CANARY, EngineWatchdog
from edgecosine.node.target.output_processor import OutputProcessor
from edgecosine.node.target.session import Session
from edgecosine.node.target.text_service import TextService
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api import parse_request as intake
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.openai import RequestLimits
from edgecosine.protocol.api.parse_request import RequestParser
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.support.cluster import Drafter, TargetHarness
from tests.support.cluster import harness as target_harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, alone, babble
from tests.support.fakes import request_manager
from tests.support.mqtt import run

HOME = Topics("home")
LANGUAGE = babble()
BAD = "a/bad"
LENGTH = 40


class Injected(Exception):
    """An unexpected exception."""


Found = Callable[..., bool]


def by_task(*_: Any, **__: Any) -> bool:
    """The session of the bad request runs."""
    task = asyncio.current_task()
    return task is not None and task.get_name() == BAD


def by_key(owner: Any, *_: Any, **__: Any) -> bool:
    """What belongs to the bad request's session."""
    return bool(owner._key == BAD)


def by_first(_: Any, what: Any, *__: Any, **___: Any) -> bool:
    """The first argument is the bad request's: a key, a ticket, an entry, a request or a work."""
    while (inner := getattr(what, "ticket", None)) is not None:
        what = inner
    if isinstance(what, list | tuple):
        what = what[0]
    return getattr(what, "key", what) == BAD


def by_second(owner: Any, _: Any, what: Any, *__: Any) -> bool:
    """The same of the second argument."""
    return by_first(owner, what)


STAGES: dict[str, tuple[Any, str, Found]] = {
    "read": (intake, "parse_request", lambda *_, **given: given["request_id"] == "bad"),
    "recalled": (RequestTable, "recall", by_first),
    "admitted": (RequestTable, "add", by_first),
    "booked": (SessionSlots, "book", by_first),
    "journalled": (DiskJournal, "accept", by_first),
    "accepted": (ReplyPublisher, "send_state", by_first),
    "started": (RequestRunner, "start", by_first),
    "begun": (DiskJournal, "begin", by_first),
    "prompt tokens": (TextCodec, "encode", lambda _, text: "bad" in text),
    "opened": (Statistics, "open", by_task),
    "first plan": (Planner, "first_plan", by_task),
    "plan": (Planner, "plan", by_task),
    "asked": (DraftClient, "_request", by_key),
    "draft": (DraftClient, "_checked", by_key),
    "fuse": (Planner, "fuse", by_task),
    "ahead": (Planner, "ahead", by_task),
    "verify": (Verifier, "submit", by_first),
    "commit": (Session, "_commit", by_task),
    "learned": (AcceptanceStatistics, "observe_truth", by_task),
    "text": (OutputProcessor, "push", by_task),
    "tokens journalled": (DiskJournal, "commit", by_first),
    "stream": (ReplyPublisher, "send_part", by_first),
    "counted": (TextService, "_count", by_first),
    "answer": (Session, "_answer", by_task),
    "cost": (SessionSlots, "learn", by_second),
    "message": (answering, "answer_reply", lambda ticket, *_, **__: ticket.key == BAD),
    "last part": (ReplyPublisher, "send_last_part", by_first),
    "closed": (Statistics, "close", by_task),
    "released": (DraftClient, "release", by_key),
}


@dataclass
class Harness:
    """A target's gateway without MQTT: reads bodies, and keeps what it sends."""

    home: TargetHarness
    manager: RequestManager
    admission: AdmissionControl
    journal: DiskJournal
    sent: list[Outgoing]
    has_sent: asyncio.Event
    intake: RequestParser = field(
        default_factory=lambda: RequestParser(
            HOME, max_request_bytes=1 << 20, draw_id=lambda: "drawn", draw_seed=lambda: 7
        )
    )

    def take(self, name: str, prompt: str) -> None:
        body = {
            "client": "a", "id": name, "prompt": prompt, "max_tokens": LENGTH, "stream": True,
            "temperature": 0.8, "seed": 5,
        }  # fmt: skip
        message = Incoming(HOME.request("completion"), json.dumps(body).encode())
        reading = self.intake.read("completion", message, RequestLimits())
        if isinstance(reading, RequestRecord):
            self.manager.accept(reading)
        else:
            self.manager.refusals.send(reading.ticket, reading.error, reading.cause)

    async def final(self, name: str) -> Any:
        """The one final message."""
        while not (found := [m for m in self.sent if m.topic == HOME.response("a", name)]):
            self.has_sent.clear()
            await self.has_sent.wait()
        assert len(found) == 1
        return json.loads(found[0].payload)


@asynccontextmanager
async def harness(target: ScriptedTarget, directory: Path) -> AsyncIterator[Harness]:
    """Two sessions at a time, and a drafter."""
    sent, has_sent = list[Outgoing](), asyncio.Event()

    def send(message: Outgoing) -> None:
        sent.append(message)
        has_sent.set()

    setups = [Drafter(ScriptedDrafter(LANGUAGE, hits=0.7))]
    async with target_harness(target, setups, max_sessions=2) as home:
        journal = DiskJournal(directory)
        admission = AdmissionControl(num_slots=2, max_queued=8)
        manager = request_manager(home.service, send, admission, journal=journal)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(journal.run())
            running = group.create_task(manager.run())
            await asyncio.sleep(0)
            yield Harness(home, manager, admission, journal, sent, has_sent)
            await journal.settled()
            assert journal.store.read("SELECT key FROM jobs") == []
            running.cancel()
            await asyncio.wait([running])
            writing.cancel()


def correct_text(name: str, prompt: str) -> str:
    """The right text."""
    fields = {"client": "a", "prompt": prompt, "max_tokens": LENGTH, "temperature": 0.8, "seed": 5}
    request: Request = intake.parse_request(
        "completion",
        fields,
        client_id="a",
        request_id=name,
        limits=RequestLimits(),
        draw_seed=lambda: 7,
    )
    return alone(LANGUAGE, request).text


async def assert_only_the_bad_one_fails(at: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """A request beside the bad one, and two after it, which need all slots."""
    at.take("good", "one of the good")
    at.take("bad", "a bad one")
    failed = await at.final("bad")
    assert failed["error"]["code"] == "internal_error"
    assert (await at.final("good"))["choices"][0]["text"] == correct_text("good", "one of the good")
    for name in ("next", "another"):
        at.take(name, f"the {name}")
    for name in ("next", "another"):
        assert (await at.final(name))["choices"][0]["text"] == correct_text(name, f"the {name}")
    await at.manager.runner.idle()
    assert at.admission.num_running == at.admission.num_queued == 0
    assert repr(at.home.service).startswith("<TextService scripted [0 sessions")
    assert at.home.planner.statistics.num_active == 0
    await at.home.verifier.verify(VerifyWork("probe", (1, 2), 2, EMPTY_TREE, Sampling()))
    assert set(at.home.target.fed) <= {"probe"}
    assert "[0 waiting" in repr(at.home.verifier)
    lines = [record for record in caplog.records if record.levelname == "ERROR"]
    assert all("request=a/bad" in line.getMessage() for line in lines)
    assert all(line.exc_info is None for line in lines)


@pytest.mark.parametrize("stage", STAGES)
def test_exception_at_any_stage_ends_only_its_request(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", 0.0)
    owner, name, is_bad = STAGES[stage]
    before, num_raised = getattr(owner, name), [0]

    def step(*given: Any, **named: Any) -> Any:
        if is_bad(*given, **named):
            num_raised[0] += 1
            if stage == "closed":
                before(*given, **named)
            raise Injected(stage)
        return before(*given, **named)

    async def scenario() -> None:
        async with harness(ScriptedTarget(LANGUAGE, chunk=4), tmp_path) as at:
            monkeypatch.setattr(owner, name, step)
            await assert_only_the_bad_one_fails(at, caplog)

    run(scenario())
    assert num_raised[0]
    assert any("Injected" in record.getMessage() for record in caplog.records)


class FailingTarget(ScriptedTarget):
    """Fails at whole passes with the bad request in them, or at its verification results alone."""

    def __init__(self, is_bad: Callable[[VerifyWork], bool], *, fails_alone: bool) -> None:
        super().__init__(LANGUAGE, chunk=4)
        self._is_bad, self._fails_alone = is_bad, fails_alone

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        bad = [work.key == BAD and self._is_bad(work) for work in batch]
        if any(bad) and not self._fails_alone:
            raise Injected("pass")
        result = super().step(batch)
        outcomes = [
            FailedWork(Injected("alone")) if failed else outcome
            for failed, outcome in zip(bad, result.outcomes, strict=True)
        ]
        return StepResult(outcomes, result.num_rows)


@pytest.mark.parametrize("fails_alone", [True, False])
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_engine_failure_at_one_request_ends_only_that_request(
    num_tokens: int, fails_alone: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the prompt is read, at the first draw, and at a later tree."""
    length = len("a bad one") + num_tokens

    async def scenario() -> None:
        target = FailingTarget(
            lambda work: not num_tokens or len(work.tokens) >= length, fails_alone=fails_alone
        )
        async with harness(target, tmp_path) as at:
            await assert_only_the_bad_one_fails(at, caplog)

    run(scenario())
    assert any("Injected" in record.getMessage() for record in caplog.records)


def test_engine_that_always_fails_ends_the_node(tmp_path: Path) -> None:
    def fail(_number: int, keys: list[str]) -> None:
        if keys != ["profile"]:
            raise Injected("pass")

    async def scenario() -> None:
        async with target_harness(
            ScriptedTarget(LANGUAGE, before_pass=fail), may_fail=True
        ) as home:
            asked = Request("a", "bad", "ask", "x")
            with pytest.raises(ActorStopped):
                await home.answer(asked)
            assert home.verifier.has_failed

    run(scenario())


def test_exception_at_a_draft_changes_no_text(tmp_path: Path) -> None:
    class FailingDrafter(ScriptedDrafter):
        def draft(self, batch: Sequence[DraftWork], *_: Any) -> list[DraftResult]:
            if any(work.key == BAD for work in batch):
                raise Injected("draft")
            return super().draft(batch)

    async def scenario() -> None:
        setups = [
            Drafter(FailingDrafter(LANGUAGE)),
            Drafter(ScriptedDrafter(LANGUAGE)),
        ]
        async with target_harness(ScriptedTarget(LANGUAGE), setups) as home:
            for name in ("bad", "good"):
                asked = Request("a", name, "ask", "x", max_tokens=LENGTH)
                answer = await home.answer(asked)
                assert answer.text == alone(LANGUAGE, asked).text
            assert answer.metrics.num_accepted_tokens > 0

    run(scenario())


def test_failed_canary_makes_the_target_unavailable() -> None:
    reasons: list[str] = []
    has_reason = asyncio.Event()

    def on_change(reason: str | None) -> None:
        if reason is not None:
            reasons.append(reason)
            has_reason.set()

    def fail(_number: int, keys: list[str]) -> None:
        if keys == [CANARY]:
            raise Injected("canary")

    async def scenario() -> None:
        async with target_harness(ScriptedTarget(LANGUAGE, before_pass=fail)) as home:
            readiness = EngineWatchdog(
                passes=home.verifier, prompt=[1], is_exact=True, on_change=on_change, period_s=0.05
            )
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(readiness.run())
                await has_reason.wait()
                watching.cancel()

    run(scenario())
    assert "Injected" in reasons[0]
