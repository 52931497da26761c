"""The request manager without a broker sends one final for each request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.errors import NoLogits, RequestError
from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.node.cluster_queue.local_queue import LocalQueue
from edgecosine.node.durability.interface import Journal, NoJournal, OnWritten
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.result import Progress
from edgecosine.protocol.api.topics import Topics
from tests.support.fakes import ScriptedService, request_manager
from tests.support.mqtt import run, running

HOME = Topics("home")


class Harness:
    """A request manager and all that it sent."""

    def __init__(
        self,
        service: ScriptedService,
        journal: Journal | None = None,
        queue: RequestQueue | None = None,
    ) -> None:
        self.sent: list[Outgoing] = []
        self._news = asyncio.Event()
        self.admission = AdmissionControl(num_slots=service.max_sessions, max_queued=4)
        self.manager = request_manager(
            service, self._send, self.admission, journal=journal, queue=queue
        )

    def _send(self, message: Outgoing) -> None:
        self.sent.append(message)
        self._news.set()

    async def expect_final(self, request_id: str) -> None:
        """Wait for a final message."""
        while not self.finals(request_id):
            self._news.clear()
            await self._news.wait()

    def take(
        self,
        request_id: str,
        prompt: str = "x",
        deadline_s: float = 60.0,
        *,
        wants_stream: bool = False,
        n: int = 1,
    ) -> None:
        """Send a request."""
        reply = HOME.response("a", request_id)
        ticket = RequestTicket("a", request_id, "completion", reply, wants_stream=wants_stream)
        request = Request("a", request_id, "completion", prompt, deadline_s=deadline_s, n=n)
        self.manager.accept(RequestRecord(ticket, request))

    def finals(self, request_id: str) -> list[str]:
        """Codes of the errors that a request got, `text` for an answer."""
        bodies = [
            json.loads(message.payload)
            for message in self.sent
            if message.topic == HOME.response("a", request_id)
        ]
        return [body["error"]["code"] if "error" in body else "text" for body in bodies]


class BreakingService(ScriptedService):
    """Has a task group fail inside each session, and continues."""

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fail())
        async for step in super().answer(request):
            yield step

    async def _fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError


@pytest.mark.parametrize("service", [ScriptedService(), BreakingService()])
def test_deadline_holds_after_a_failed_task_group_in_the_session(service: ScriptedService) -> None:
    async def scenario() -> None:
        service.hold("hm")
        harness = Harness(service)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            harness.take("1", "hm", deadline_s=0.05)
            await harness.expect_final("1")
            running.cancel()
        assert harness.finals("1") == ["deadline_exceeded"]

    run(scenario())


def test_requests_at_shutdown_fail_and_later_ones_are_refused() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.hold("hm")
        harness = Harness(service)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            harness.take("1", "hm")
            running.cancel()
        harness.take("2")
        assert harness.finals("1") == ["shutting_down"]
        assert harness.finals("2") == ["draining"]
        assert "0 active" in repr(harness.manager)

    run(scenario())


def test_answer_too_large_for_mqtt_is_an_error() -> None:
    async def scenario() -> None:
        harness = Harness(ScriptedService(words=("x" * MAX_PAYLOAD_BYTES,)))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            harness.take("1")
            await harness.expect_final("1")
            running.cancel()
        assert harness.finals("1") == ["answer_too_large"]

    run(scenario())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("too long", code="context_length_exceeded"), "context_length_exceeded"),
        (ValueError("bug"), "internal_error"),
        (BaseException("panic"), "internal_error"),
    ],
)
def test_invalid_request_is_refused_before_journal_and_queue(
    error: BaseException, code: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.invalid["hm"] = error
        journal = DiskJournal(tmp_path)
        harness = Harness(service, journal)
        async with running(journal.run()), running(harness.manager.run()):
            await asyncio.sleep(0)
            harness.take("1", "hm")
            await journal.settled()
            assert journal.store.read("SELECT key FROM jobs") == []
            await harness.expect_final("1")
            harness.take("2")
            await harness.expect_final("2")
        assert (harness.finals("1"), harness.finals("2")) == ([code], ["text"])
        assert service.requests[0].request_id == "2"

    run(scenario())


def test_request_with_more_choices_than_sessions_is_refused() -> None:
    async def scenario() -> None:
        harness = Harness(ScriptedService(max_sessions=3))
        async with running(harness.manager.run()):
            await asyncio.sleep(0)
            harness.take("1", n=4)
        assert harness.finals("1") == ["invalid_value"]
        assert "n is 4" in str(harness.sent)

    run(scenario())


def test_invalid_request_costs_no_check_while_the_queue_is_full() -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=1)
        service.hold("hm")
        service.invalid["bad"] = RequestError("bad")
        harness = Harness(service)
        async with running(harness.manager.run()):
            await asyncio.sleep(0)
            for number in range(5):
                harness.take(str(number), "hm")
            harness.take("6", "bad")
            assert harness.finals("6") == ["overloaded"]

    run(scenario())


class Panic(BaseException):
    """What a library that is not Python's may raise."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("bug"), "serving this request failed"),
        (ExceptionGroup("several", [ValueError("bug")]), "serving this request failed"),
        (Panic("bug"), "serving this request failed"),
        (TimeoutError("bug"), "serving this request failed"),
        (NoLogits(), "NaN"),
    ],
)
def test_exception_in_the_service_ends_only_its_request(
    error: BaseException, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.errors["bug"] = error
        held = service.hold("hm")
        harness = Harness(service)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            harness.take("1", "hm")
            harness.take("2", "bug")
            await harness.expect_final("2")
            held.set()
            await harness.expect_final("1")
            running.cancel()
        assert harness.finals("2") == ["internal_error"]
        assert words in str(harness.sent)
        assert harness.finals("1") == ["text"]
        assert harness.admission.num_running == harness.admission.num_queued == 0

    run(scenario())
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "request=a/2" in line.getMessage()
    assert line.exc_info is None


def test_request_whose_stream_cannot_be_rendered_gets_a_plain_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Outgoing:
        raise ValueError("no part can be made")

    async def scenario() -> None:
        harness = Harness(ScriptedService())
        async with asyncio.TaskGroup() as group:
            running = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            with monkeypatch.context() as patch:
                patch.setattr("edgecosine.node.gateway.reply_sink.piece_message", fail)
                harness.take("1", wants_stream=True)
                await harness.expect_final("1")
            harness.take("2", wants_stream=True)
            await harness.expect_final("2")
            running.cancel()
        assert (harness.finals("1"), harness.finals("2")) == (["internal_error"], ["text"])

    run(scenario())


class RefusingJournal(NoJournal):
    """Cannot be written."""

    def accept(
        self, ticket: RequestTicket, request: Request, model: str, on_written: OnWritten
    ) -> None:
        on_written(False)


class ContestedQueue(LocalQueue):
    """Another target may have the requests: what needs their ownership is held."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.held: list[tuple[RequestEnd, Callable[[], None]]] = []

    def when_owned(self, key: str, end: RequestEnd, send: Callable[[], None]) -> None:
        self.held.append((end, send))


def test_refusal_of_a_claimed_request_waits_until_no_other_target_can_answer_it() -> None:
    async def scenario() -> None:
        queue = ContestedQueue()
        home = Harness(ScriptedService(), RefusingJournal(), queue)
        async with running(home.manager.run()):
            await asyncio.sleep(0)
            home.take("1")
            assert not home.finals("1")
            [(end, send)] = queue.held
            assert json.loads(end.final.body)["error"]["code"] == "journal_unavailable"
            send()
            assert home.finals("1") == ["journal_unavailable"]

    run(scenario())
