"""A gateway that is killed at every record of its journal gives the same text and one final."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.errors import JournalLost
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.durability import journal as journal_module
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import MAX_STARTS, recover
from edgecosine.node.durability.store import Statement
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.node.gateway.service import Service, model_of
from edgecosine.protocol.api.choices import choices_of
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.request import Committed, Request, Sampling
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.result import Progress
from edgecosine.protocol.api.topics import Topics
from tests.support.cluster import Drafter
from tests.support.cluster import harness as target_harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, alone, babble
from tests.support.fakes import ScriptedService, acknowledge, request_manager
from tests.support.mqtt import run

HOME = Topics("home")
FINAL = HOME.response("a", "1")
STREAM = HOME.stream("a", "1")
NEVER = 1000
LANGUAGE = babble(eos_every=40)

REQUESTS = (
    Request("a", "1", "completion", "To be", stream=True, max_tokens=24),
    Request(
        "a", "1", "completion", "To be", stream=True, max_tokens=24, n=2, top_logprobs=2,
        sampling=Sampling(temperature=0.8, seed=3, min_tokens=6), stop=("ab", "cdd"),
    ),
)  # fmt: skip


@dataclass
class World:
    """The messages seen outside, over all processes of the gateway."""

    texts: dict[int, str] = field(default_factory=dict)
    finals: list[bytes] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    num_deaths: int = 0

    def see(self, message: Outgoing) -> None:
        """A reader that keeps `text[:i] + delta`, and finds no gap and no contradiction."""
        if message.topic == FINAL:
            self.finals.append(message.payload)
        elif message.topic == STREAM:
            piece = json.loads(message.payload)
            if piece["fin"]:
                assert piece["i"] == sum(map(len, self.texts.values()))
                return
            choice, index, delta = piece.get("choice", 0), piece["i"], piece["delta"]
            text = self.texts.get(choice, "")
            assert index <= len(text), "a gap"
            common = min(len(text) - index, len(delta))
            assert text[index : index + common] == delta[:common], "a contradiction"
            self.texts[choice] = text[:index] + delta + text[index + len(delta) :]
        else:
            self.states.append(json.loads(message.payload)["state"])


class Killed(Exception):
    """The process is gone."""


class MortalJournal(DiskJournal):
    """Dies before its record number `dies_at`, or right behind the one before."""

    def __init__(self, directory: Path, dies_at: int, *, is_late: bool = False) -> None:
        super().__init__(directory)
        self.is_dead = False
        self.has_changed = asyncio.Event()
        self._num_left, self._is_late = dies_at, is_late
        self._write_really, self.store.write = self.store.write, self._write_mortally  # type: ignore[method-assign]

    def _write_mortally(self, statements: Iterable[Statement], *, is_lasting: bool) -> None:
        if not self._num_left:
            self._die()
            raise Killed
        self._write_really(statements, is_lasting=is_lasting)
        self._num_left -= 1
        if self._is_late and not self._num_left:
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.has_changed.set)


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is a transaction of its own."""
    monkeypatch.setattr(journal_module, "_MAX_BATCH", 1)


def admission(service: Service) -> AdmissionControl:
    """Room for a few."""
    return AdmissionControl(num_slots=service.max_sessions, max_queued=16)


async def live(
    service: Service, journal: MortalJournal, world: World, request: Request, *, asks: bool
) -> None:
    """One process of a gateway, until it is killed or has nothing left to do."""

    def send(message: Outgoing) -> None:
        if not journal.is_dead:
            world.see(message)
            journal.has_changed.set()
            acknowledge(manager, message)

    past = recover(journal, model_of(service), BootTime.now())
    manager = request_manager(service, send, admission(service), journal=journal, recovered=past)
    ticket = RequestTicket("a", "1", request.kind, FINAL, wants_stream=request.stream, digest=b"d")
    try:
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(journal.run())
            running = group.create_task(manager.run())
            await asyncio.sleep(0)
            if asks:
                manager.accept(RequestRecord(ticket, request))
            while not (journal.is_dead or world.finals):
                journal.has_changed.clear()
                await journal.has_changed.wait()
            if not journal.is_dead:
                await journal.settled()
            running.cancel()
            await asyncio.wait([running])
            writing.cancel()
    except* Killed:
        pass
    world.num_deaths += journal.is_dead


async def run_processes(request: Request, directory: Path, *deaths: tuple[int, bool]) -> World:
    """Send a request, kill the gateway as often as given, then finish; with drafters."""
    world = World()
    setups = [Drafter(ScriptedDrafter(LANGUAGE, hits=0.6))]
    for number, (dies_at, is_late) in enumerate([*deaths, (NEVER, False)]):
        async with target_harness(ScriptedTarget(LANGUAGE), setups) as home:
            journal = MortalJournal(directory, dies_at, is_late=is_late)
            # A client without an `accepted` state repeats its request.
            asks = number == 0 or not world.states
            await live(home.service, journal, world, request, asks=asks)
    return world


def assert_as_if_nothing_had_happened(world: World, request: Request) -> None:
    said = [alone(LANGUAGE, choice) for choice in choices_of(request)]
    assert len(set(world.finals)) == 1
    final = json.loads(world.finals[0])
    assert [choice["text"] for choice in final["choices"]] == [each.text for each in said]
    assert [choice["finish_reason"] for choice in final["choices"]] == [
        each.finish_reason for each in said
    ]
    if request.top_logprobs is not None:
        logprobs = [choice["logprobs"]["token_logprobs"] for choice in final["choices"]]
        assert logprobs == [[each.drawn for each in choice.logprobs] for choice in said]
    assert final["usage"]["completion_tokens"] == sum(len(each.tokens) for each in said)
    assert [world.texts.get(number, "") for number in range(request.n)] == [
        each.text for each in said
    ]


@pytest.mark.parametrize(
    ("is_late", "yield_every_s"), [(False, 0.0), (True, 0.0), (True, math.inf)]
)
@pytest.mark.parametrize("request_", REQUESTS, ids=["greedy", "sampled"])
def test_killed_at_any_record_the_result_is_the_same(
    request_: Request,
    is_late: bool,
    yield_every_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", yield_every_s)

    async def scenario() -> None:
        for dies_at in range(NEVER):
            directory = tmp_path / str(dies_at)
            world = await run_processes(request_, directory, (dies_at, is_late))
            assert_as_if_nothing_had_happened(world, request_)
            if not world.num_deaths:
                break
        assert dies_at > 5

    run(scenario())


@pytest.mark.parametrize("deaths", [[(3, False), (3, False)], [(4, True), (2, True), (6, False)]])
def test_killed_several_times_the_result_is_the_same(
    deaths: list[tuple[int, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", 0.0)

    async def scenario() -> None:
        for request in REQUESTS:
            world = await run_processes(request, tmp_path / str(request.n), *deaths)
            assert world.num_deaths == len(deaths)
            assert_as_if_nothing_had_happened(world, request)

    run(scenario())


class TokenlessService(ScriptedService):
    """Commits no tokens, so that a session that ends with its process made no progress."""

    commits = False


class Harness:
    """A request manager with a journal, all that it sent, and whether that is acknowledged."""

    def __init__(self, directory: Path, service: TokenlessService) -> None:
        self.journal = DiskJournal(directory)
        self.sent: list[Outgoing] = []
        self.is_acknowledging = True
        self._news = asyncio.Event()
        self.admission = admission(service)
        past = recover(self.journal, model_of(service), BootTime.now())
        self.manager = request_manager(
            service, self._send, self.admission, journal=self.journal, recovered=past
        )

    def _send(self, message: Outgoing) -> None:
        self.sent.append(message)
        if self.is_acknowledging:
            acknowledge(self.manager, message)
        self._news.set()

    def take(self, name: str = "1", prompt: str = "hm", **fields: Any) -> None:
        reply = fields.pop("reply", HOME.response("a", name))
        is_stream = fields.get("stream", False)
        ticket = RequestTicket("a", name, "completion", reply, wants_stream=is_stream, digest=b"d")
        request = Request("a", name, "completion", prompt, **fields)
        self.manager.accept(RequestRecord(ticket, request))

    async def expect(self, topic: str, count: int = 1) -> list[dict[str, Any]]:
        while len(found := [m for m in self.sent if m.topic == topic]) < count:
            self._news.clear()
            await self._news.wait()
        return [json.loads(message.payload) for message in found]

    async def expect_state(self, state: str, name: str = "1") -> None:
        topic = HOME.job_state(name)
        while state not in [body["state"] for body in await self.expect(topic, 0)]:
            self._news.clear()
            await self._news.wait()


@asynccontextmanager
async def harness(
    directory: Path, service: TokenlessService | None = None
) -> AsyncIterator[Harness]:
    """A request manager that is stopped as by SIGTERM."""
    at = Harness(directory, service or TokenlessService())
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(at.journal.run())
        open_ = group.create_task(at.manager.run())
        await asyncio.sleep(0)
        yield at
        await at.journal.settled()
        open_.cancel()
        await asyncio.wait([open_])
        writing.cancel()


def holding() -> TokenlessService:
    service = TokenlessService()
    service.hold("hm")
    return service


def test_stopped_gateway_leaves_its_requests_to_the_next_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take()
            await at.expect_state("running")
        assert not await at.expect(FINAL, 0)
        async with harness(tmp_path) as at:
            [final] = await at.expect(FINAL)
            assert final["choices"][0]["text"] == "to be"
            await at.expect_state("done")
            assert [body["state"] for body in await at.expect(HOME.job_state("1"))] == [
                "accepted", "queued", "running", "done",
            ]  # fmt: skip

    run(scenario())


def test_drain_that_times_out_leaves_the_rest_to_the_next_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take()
            await at.expect_state("running")
            at.manager.drain()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await at.manager.runner.idle()
        assert not await at.expect(FINAL, 0)
        async with harness(tmp_path) as at:
            [final] = await at.expect(FINAL)
            assert final["choices"][0]["text"] == "to be"
            await at.manager.runner.idle()

    run(scenario())


def test_resumed_request_occupies_a_slot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take(n=2)
            await at.expect_state("running")
        async with harness(tmp_path, holding()) as at:
            await at.expect_state("running")
            assert at.admission.num_running == 2
        async with harness(tmp_path) as at:
            await at.expect(FINAL)
            assert at.admission.num_running == at.admission.num_queued == 0

    run(scenario())


def test_deadline_continues_while_no_process_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take(deadline_s=0.2)
            await at.expect_state("running")
        await asyncio.sleep(0.25)  # the deadline is what is waited for
        async with harness(tmp_path, holding()) as at:
            [final] = await at.expect(FINAL)
            assert final["error"]["code"] == "deadline_exceeded"

    run(scenario())


def test_delivered_final_is_sent_again_on_request_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path) as at:
            at.is_acknowledging = False
            at.take()
            [first] = await at.expect(FINAL)
        async with harness(tmp_path) as at:
            assert await at.expect(FINAL) == [first]
        service = TokenlessService()
        async with harness(tmp_path, service) as at:
            at.take(reply=HOME.response("a", "elsewhere"))
            assert await at.expect(HOME.response("a", "elsewhere")) == [first]
            assert not await at.expect(FINAL, 0)
            assert not service.requests

    run(scenario())


def test_undelivered_final_follows_its_whole_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path) as at:
            at.is_acknowledging = False
            at.take(stream=True)
            await at.expect(FINAL)
        async with harness(tmp_path) as at:
            await at.expect(FINAL)
            assert [message.topic for message in at.sent[:3]] == [STREAM, STREAM, FINAL]
            assert await at.expect(STREAM) == [
                {"i": 0, "delta": "to be", "fin": False},
                {"i": 5, "delta": "", "fin": True},
            ]
        async with harness(tmp_path) as at:
            await at.journal.settled()
            assert not await at.expect(STREAM, 0)

    run(scenario())


def test_final_goes_to_the_latest_reply_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take()
            await at.expect_state("running")
            at.take(reply=HOME.response("a", "elsewhere"))
        async with harness(tmp_path) as at:
            await at.expect(HOME.response("a", "elsewhere"))
            assert not await at.expect(FINAL, 0)

    run(scenario())


def test_request_that_cannot_be_journalled_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = TokenlessService()
        async with harness(tmp_path, service) as at:
            write = at.journal.store.write

            def refuse(statements: Iterable[Statement], *, is_lasting: bool) -> None:
                raise JournalLost("full")

            at.journal.store.write = refuse  # type: ignore[method-assign]
            at.take()
            [final] = await at.expect(FINAL)
            assert (final["error"]["code"], final["error"]["status"]) == (
                "journal_unavailable", 503,
            )  # fmt: skip
            assert final["error"]["retry_after_s"] > 0
            assert not service.requests
            assert at.admission.num_running == 0
            await at.manager.runner.idle()
            at.journal.store.write = write  # type: ignore[method-assign]
            at.take()
            finals = await at.expect(FINAL, 2)
            assert "choices" in finals[1]
        async with harness(tmp_path, service) as at:
            assert not await at.expect(FINAL, 0)
            assert len(service.requests) == 1

    run(scenario())


def test_unwritten_final_is_not_sent_twice_across_a_crash(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        service = TokenlessService()
        gate = service.hold("hm")
        at = Harness(tmp_path, service)

        def refuse(statements: Iterable[Statement], *, is_lasting: bool) -> None:
            raise JournalLost("full")

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (at.journal.run(), at.manager.run())]
            await asyncio.sleep(0)
            at.take()
            await at.expect_state("running")
            at.journal.store.write = refuse  # type: ignore[method-assign]
            gate.set()
            await at.manager.runner.idle()
            await at.journal.settled()
            assert not await at.expect(FINAL, 0)
            assert "done" not in [body["state"] for body in await at.expect(HOME.job_state("1"))]
            for task in tasks:
                task.cancel()
        assert not await at.expect(FINAL, 0)
        async with harness(tmp_path, service) as at:
            assert (await at.expect(FINAL))[0]["choices"]
            await at.expect_state("done")
        assert len(service.requests) == 2

    run(scenario())


def test_request_that_always_crashes_the_process_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        for _ in range(MAX_STARTS + 1):
            async with harness(tmp_path, holding()) as at:
                at.take()
                await at.expect_state("running")
        for _ in range(MAX_STARTS):
            async with harness(tmp_path, holding()) as at:
                at.journal.leave = lambda _: None  # type: ignore[method-assign]
                at.take()
                await at.expect_state("running")
        async with harness(tmp_path) as at:
            [final] = await at.expect(FINAL)
            assert final["error"]["code"] == "internal_error"

    run(scenario())


def test_request_that_always_breaks_the_engine_is_given_up(tmp_path: Path) -> None:
    """The process ends by an error and not by a kill, in which order its parts may well end."""

    async def scenario() -> None:
        for number in range(MAX_STARTS):
            service = holding()
            async with harness(tmp_path, service) as at:
                if not number:
                    at.take()
                await at.expect_state("running")
                assert not await at.expect(FINAL, 0)
                service.has_engine_failed = True
        async with harness(tmp_path) as at:
            [final] = await at.expect(FINAL)
            assert final["error"]["code"] == "internal_error"
            assert str(MAX_STARTS) in final["error"]["message"]

    run(scenario())


class DeadlyService(TokenlessService):
    """Ends its process at a deadly prompt; records how many sessions ran together."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work: set[str] = set()
        self.beside: list[set[str]] = []
        """The active prompts at each start of a session."""
        self.has_ended = asyncio.Event()

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        prompt = str(request.prompt)
        self.at_work.add(prompt)
        self.beside.append(set(self.at_work))
        try:
            async for step in super().answer(request):
                yield step
                if prompt == "deadly" and "deadly" not in self.held:
                    self.has_ended.set()
                    await asyncio.Event().wait()
        finally:
            self.at_work.discard(prompt)


def killed(at: Harness) -> None:
    """This process ends without shutdown."""
    at.journal.leave = lambda _: None  # type: ignore[method-assign]


def test_suspect_runs_alone_and_crashes_no_other_request(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        service = DeadlyService()
        service.hold("innocent")
        service.hold("deadly")
        async with harness(tmp_path, service) as at:
            at.take("1", "deadly")
            for number in range(2, 6):
                at.take(str(number), "innocent")
            await service.begun(4)
            killed(at)
        sent: list[Outgoing] = []
        for life in range(MAX_STARTS - 1):
            service = DeadlyService()
            async with harness(tmp_path, service) as at:
                if not life:
                    at.take("new", "newcomer")
                await service.has_ended.wait()
                killed(at)
            sent += at.sent
            assert all(len(each) == 1 for each in service.beside)
        async with harness(tmp_path, DeadlyService()) as at:
            await at.manager.runner.idle()
        bodies = {m.topic: json.loads(m.payload) for m in [*sent, *at.sent]}
        finals = [bodies[HOME.response("a", name)] for name in ("1", "2", "3", "4", "5", "new")]
        assert finals[0]["error"]["code"] == "internal_error"
        assert all("choices" in final for final in finals[1:])

    run(scenario())


def test_requests_with_new_tokens_or_queued_ones_are_no_suspects(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = holding()
        async with harness(tmp_path, service) as at:
            for number in range(service.max_sessions + 1):
                at.take(str(number))
            await service.begun(service.max_sessions)
            for number in range(service.max_sessions):
                at.journal.commit(f"a/{number}", 0, 0, Committed((1,)))
            killed(at)
        service = holding()
        async with harness(tmp_path, service) as at:
            await service.begun(service.max_sessions)
            at.manager.cancel("0", "a")
            await service.begun(service.max_sessions + 1)

    run(scenario())


def test_cancelled_or_expired_suspect_lets_the_others_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(tmp_path, holding()) as at:
            at.take("1", n=2)
            at.take("2", deadline_s=0.3)
            await at.expect_state("running", "2")
            killed(at)
        service = holding()
        async with harness(tmp_path, service) as at:
            at.take("3")
            await service.begun(2)
            await at.expect(HOME.response("a", "2"))
            assert {request.request_id for request in service.requests} == {"1"}
            at.manager.cancel("1", "a")
            await at.expect(HOME.response("a", "1"))
            await at.expect_state("running", "3")

    run(scenario())


@pytest.mark.parametrize(
    ("lost", "damage"),
    [
        ("1", "UPDATE jobs SET request = x'c1' WHERE key = 'a/1'"),
        ("3", "UPDATE answers SET final = x'c1' WHERE key = 'a/3'"),
    ],
)
def test_unreadable_record_is_dropped_and_the_others_continue(
    lost: str, damage: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        service = holding()
        async with harness(tmp_path, service) as at:
            at.is_acknowledging = False
            for name, prompt in (("1", "hm"), ("2", "hm"), ("3", "x"), ("4", "x")):
                at.take(name, prompt)
            for name in "34":
                await at.expect(HOME.response("a", name))
            await at.journal.settled()
            at.journal.store.write([(damage, ())], is_lasting=False)
        for _ in range(2):
            async with harness(tmp_path) as at:
                at.is_acknowledging = False
                for name in {*"1234"} - {lost}:
                    await at.expect(HOME.response("a", name))
                assert not await at.expect(HOME.response("a", lost), 0)

    run(scenario())


def test_request_is_acknowledged_once_it_is_journalled(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = DiskJournal(tmp_path)
        gateway = Gateway(
            TokenlessService(), broker=BrokerAddress.parse("mqtt://127.0.0.1"), cluster="home",
            node_id="t1", journal=journal,
        )  # fmt: skip
        gateway.queue.state.join(0.0, is_remembered=False)
        is_acknowledged = asyncio.Event()
        message = Incoming(
            HOME.request("completion"), b'{"id": "1", "prompt": "hm"}',
            acknowledge=is_acknowledged.set,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            open_ = group.create_task(gateway._manager.run())
            await asyncio.sleep(0)
            gateway._receive(message)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not is_acknowledged.is_set()
            writing = group.create_task(journal.run())
            await is_acknowledged.wait()
            assert journal.store.read("SELECT key FROM jobs") == [("anon/1",)] or (
                journal.store.read("SELECT key FROM answers") == [("anon/1",)]
            )
            open_.cancel()
            await asyncio.wait([open_])
            writing.cancel()

    run(scenario())
