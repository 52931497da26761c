"""The watchdog: a frozen engine thread is detected and reported, and so is its recovery."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edgecosine.engine.base import VerificationResult, VerifyWork
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.node.target.engine_watchdog import CANARY, EngineWatchdog
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer
from tests.node.gateway.test_overload import ask
from tests.support.cluster import TargetHarness, harness
from tests.support.engines import ScriptedTarget, babble
from tests.support.mqtt import HOME, free_port, listening, needs_mosquitto, run, running

LANGUAGE = babble()
PROMPT = list(b"there?")
STALL_S = 0.2


class EngineFreeze:
    """Freezes the engine's thread from its next pass on, until `thaw`."""

    def __init__(self) -> None:
        self.is_frozen = threading.Event()
        self._freezes = False
        self._thawed = threading.Event()
        self._canaries = threading.Semaphore(0)

    def __call__(self, _number: int, keys: list[str]) -> None:
        if CANARY in keys:
            self._canaries.release()
        if self._freezes:
            self.is_frozen.set()
            assert self._thawed.wait(20)

    def fall(self) -> None:
        self._freezes = True

    async def canaries(self, count: int) -> None:
        """Wait for more passes with a canary."""
        for _ in range(count):
            assert await asyncio.to_thread(self._canaries.acquire, timeout=20)

    def thaw(self) -> None:
        self._freezes = False
        self._thawed.set()


class ReportedChanges:
    """Changes that the watchdog reported."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        self._news = asyncio.Event()

    def __call__(self, reason: str | None) -> None:
        self.reasons.append(reason)
        self._news.set()

    async def changes(self, count: int) -> str | None:
        """Wait for the change of this number, from 1."""
        while len(self.reasons) < count:
            self._news.clear()
            await self._news.wait()
        return self.reasons[count - 1]


@asynccontextmanager
async def watched(
    freeze: EngineFreeze, reported: ReportedChanges, *, period_s: float = 60.0
) -> AsyncIterator[tuple[TargetHarness, EngineWatchdog]]:
    """A target with a watchdog."""
    async with harness(ScriptedTarget(LANGUAGE, before_pass=freeze)) as home:
        watchdog = EngineWatchdog(
            passes=home.verifier, prompt=PROMPT, is_exact=True, on_change=reported,
            period_s=period_s, stall_s=STALL_S,
        )  # fmt: skip
        try:
            async with running(watchdog.run()):
                yield home, watchdog
        finally:
            freeze.thaw()


def test_target_is_ready_when_its_engine_has_drawn_a_token() -> None:
    async def scenario() -> None:
        freeze, reported = EngineFreeze(), ReportedChanges()
        freeze.fall()
        async with watched(freeze, reported) as (home, watchdog):
            await asyncio.to_thread(freeze.is_frozen.wait, 20)
            assert reported.reasons == []
            assert watchdog.reason is not None
            freeze.thaw()
            assert await reported.changes(1) is None
            assert [CANARY] in home.target.batches

    run(scenario())


def test_canaries_are_sent_at_rest_and_harm_no_session() -> None:
    async def scenario() -> None:
        freeze, reported = EngineFreeze(), ReportedChanges()
        async with watched(freeze, reported, period_s=0.05) as (home, _):
            await freeze.canaries(4)
            answer = await home.answer(Request("me", "1", "completion", "hm", max_tokens=2))
            assert isinstance(answer, Answer)
            assert reported.reasons == [None]

    run(scenario())


def test_frozen_engine_is_unavailable_until_it_continues() -> None:
    async def scenario() -> None:
        freeze, reported = EngineFreeze(), ReportedChanges()
        async with watched(freeze, reported) as (home, watchdog), asyncio.TaskGroup() as group:
            assert await reported.changes(1) is None
            freeze.fall()
            asked = group.create_task(
                home.answer(Request("me", "1", "completion", "hm", max_tokens=2))
            )
            assert "no pass" in str(await reported.changes(2))
            assert watchdog.reason is not None
            freeze.thaw()
            assert await reported.changes(3) is None
            assert (await asked).num_tokens == 2

    run(scenario())


def test_freeze_at_rest_is_found_by_a_canary() -> None:
    async def scenario() -> None:
        freeze, reported = EngineFreeze(), ReportedChanges()
        async with watched(freeze, reported, period_s=0.05):
            assert await reported.changes(1) is None
            freeze.fall()
            assert "no pass" in str(await reported.changes(2))

    run(scenario())


class FickleEngine:
    """Answers the canary with another token each time."""

    def __init__(self) -> None:
        self.num_passes = self.num_held = 0
        self.has_changed = asyncio.Event()

    async def verify(self, _work: VerifyWork) -> VerificationResult:
        self.num_passes += 1
        if self.num_passes == 5:
            self.has_changed.set()
        return VerificationResult((), self.num_passes)

    def release(self, _key: str) -> None:
        pass


@pytest.mark.parametrize("is_exact", [True, False])
def test_exact_engine_that_draws_another_token_is_unavailable(*, is_exact: bool) -> None:
    async def scenario() -> None:
        engine, reported = FickleEngine(), ReportedChanges()
        watchdog = EngineWatchdog(
            passes=engine, prompt=PROMPT, is_exact=is_exact, on_change=reported, period_s=0.02
        )
        async with running(watchdog.run()):
            if is_exact:
                assert "drew 1 before" in str(await reported.changes(2))
            await engine.has_changed.wait()
        assert is_exact or reported.reasons == [None]

    run(scenario())


@needs_mosquitto
@pytest.mark.timeout(60)
def test_frozen_target_refuses_requests_and_publishes_why() -> None:
    async def scenario() -> None:
        freeze, reported = EngineFreeze(), ReportedChanges()
        async with (
            EmbeddedBroker(port=free_port()) as broker,
            watched(freeze, reported) as (home, _),
        ):
            address = BrokerAddress.parse(broker.url)
            gateway = Gateway(home.service, broker=address, cluster="home", node_id="t1")
            presence = NodeStatusPublisher(broker=address, cluster="home", node_id="t1")
            async with (
                running(gateway.run()), running(presence.run()), listening(broker) as listener,
            ):  # fmt: skip
                await gateway.client.connected()
                await reported.changes(1)
                freeze.fall()
                ask(listener, "me", 1)
                reason = await reported.changes(2)
                gateway.set_unavailable(reason)
                states = await listener.expect(HOME.job_state("me-1"), 4)
                assert "no pass" in json.loads(states[-1].payload)["stall"]
                presence.publish_presence("unavailable", reason or "")
                error = (await listener.expect_json(ask(listener, "me", 2)))["error"]
                assert (error["code"], error["status"]) == ("unavailable", 503)
                assert error["retry_after_s"] > 0
                published = await listener.expect(HOME.node_status("t1"), 2)
                assert b"no pass" in published[-1].payload
                freeze.thaw()
                assert await reported.changes(3) is None
                gateway.set_unavailable(None)
                states = await listener.expect(HOME.job_state("me-1"), 5)
                assert "stall" not in json.loads(states[-1].payload)
                assert "choices" in await listener.expect_json(HOME.response("me", "me-1"))
                assert "choices" in await listener.expect_json(ask(listener, "me", 3))

    run(scenario())
