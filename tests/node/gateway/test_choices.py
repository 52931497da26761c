"""Requests with several choices: concurrent sessions and one final."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.errors import ActorStopped
from edgecosine.node.gateway.service import Service
from edgecosine.protocol.api.choices import choices_of
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.result import Delta, Progress, Started
from edgecosine.protocol.api.topics import Topics
from tests.support.cluster import Drafter, LinkFault
from tests.support.cluster import harness as target_harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, alone, babble
from tests.support.fakes import ScriptedService, request_manager
from tests.support.mqtt import run

HOME = Topics("home")


class Harness:
    """A request manager, and what it sends about its one request."""

    def __init__(self, service: Service) -> None:
        self.sent: list[Outgoing] = []
        self.finished = asyncio.Event()
        admission = AdmissionControl(num_slots=service.max_sessions, max_queued=4)
        self.manager = request_manager(service, self._send, admission)

    def _send(self, message: Outgoing) -> None:
        self.sent.append(message)
        if message.topic == HOME.response("a", "1"):
            self.finished.set()

    def bodies(self, topic: str) -> list[Any]:
        """What was sent on a topic."""
        return [json.loads(m.payload) for m in self.sent if m.topic == topic]

    async def answer(self, request: Request) -> Any:
        """The one final message of a request."""
        self.take(request)
        await self.finished.wait()
        return self.final

    def take(self, request: Request) -> None:
        ticket = RequestTicket(
            "a", "1", request.kind, HOME.response("a", "1"), wants_stream=request.stream
        )
        self.manager.accept(RequestRecord(ticket, request))

    @property
    def final(self) -> Any:
        [final] = self.bodies(HOME.response("a", "1"))
        return final

    def texts(self, n: int) -> list[str]:
        """The streamed text of each choice; parts have offsets, the last one is empty."""
        *pieces, last = self.bodies(HOME.stream("a", "1"))
        texts = [""] * n
        for piece in pieces:
            choice = piece.get("choice", 0)
            assert piece["i"] == len(texts[choice])
            texts[choice] += piece["delta"]
        assert last == {"i": sum(map(len, texts)), "delta": "", "fin": True}
        return texts


@asynccontextmanager
async def harness(service: Service) -> AsyncIterator[Harness]:
    """A running request manager."""
    at = Harness(service)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(at.manager.run())
        await asyncio.sleep(0)
        yield at
        running.cancel()


def request(n: int, prompt: str = "To be", **fields: Any) -> Request:
    return Request("a", "1", "completion", prompt, stream=True, n=n, **fields)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_choice_equals_a_request_with_its_seed(n: int, temperature: float) -> None:
    language = babble(eos_every=40)
    asked = request(n, sampling=Sampling(temperature=temperature, seed=3), max_tokens=60)
    answers = [alone(language, choice) for choice in choices_of(asked)]
    setups = [
        Drafter(ScriptedDrafter(language)),
        Drafter(ScriptedDrafter(language, hits=0.5), [LinkFault.FINE, LinkFault.LINK_LOST]),
        Drafter(ScriptedDrafter(language, hits=0.0, confidence=1.0)),
    ]

    async def scenario() -> None:
        target = ScriptedTarget(language)
        async with (
            target_harness(target, setups, max_sessions=5) as home,
            harness(home.service) as at,
        ):
            final = await at.answer(asked)
            choices = final["choices"]
            assert [choice["index"] for choice in choices] == list(range(n))
            assert [choice["text"] for choice in choices] == [each.text for each in answers]
            assert [choice["finish_reason"] for choice in choices] == [
                each.finish_reason for each in answers
            ]
            assert at.texts(n) == [each.text for each in answers]
            num_tokens = sum(len(each.tokens) for each in answers)
            assert final["usage"]["completion_tokens"] == num_tokens
            assert final["usage"]["total_tokens"] == num_tokens + 5
            assert len({choice["text"] for choice in choices}) == (n if temperature else 1)
            assert max(map(len, target.batches)) >= min(n, 2)
            assert home.service.num_answers == n

    run(scenario())


@pytest.mark.parametrize("n", [1, 2])
def test_parts_name_their_choice_only_if_there_are_several(n: int) -> None:
    async def scenario() -> None:
        async with harness(ScriptedService()) as at:
            await at.answer(request(n))
            *pieces, _ = at.bodies(HOME.stream("a", "1"))
            assert {piece.get("choice") for piece in pieces} == ({None} if n == 1 else {0, 1})
            assert at.texts(n) == ["to be"] * n

    run(scenario())


def test_cancel_ends_all_choices() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.hold("hm")
        async with harness(service) as at:
            at.take(request(3, "hm"))
            await service.begun(3)
            at.manager.cancel("1", "a")
            await at.finished.wait()
            assert at.final["error"]["code"] == "cancelled"
            assert service.num_closed == 3

    run(scenario())


class LameService(ScriptedService):
    """Fails at its second choice, when the others have begun."""

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        if request.choice != 1:
            async for step in super().answer(request):
                yield step
            return
        yield Started()
        yield Delta(0, "oh")
        await self.begun(2)
        raise ActorStopped("secret")


def test_failure_of_one_choice_ends_the_others() -> None:
    async def scenario() -> None:
        service = LameService()
        service.hold("hm")
        async with harness(service) as at:
            final = await at.answer(request(3, "hm"))
            assert final["error"]["code"] == "internal_error"
            assert len(service.requests) == service.num_closed == 2
            assert "0 active" in repr(at.manager)

    run(scenario())


def test_choices_wait_for_slots_one_by_one() -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=2)
        gate = service.hold("hm")
        async with harness(service) as at:
            other = RequestTicket("b", "2", "completion", HOME.response("b", "2"))
            at.manager.accept(RequestRecord(other, Request("b", "2", "completion", "hm")))
            at.take(request(2, "hm"))
            await service.begun(2)
            assert [each.key for each in service.requests] == ["b/2", "a/1"]
            gate.set()
            await at.finished.wait()
            assert [each.key for each in service.requests] == ["b/2", "a/1", "a/1/1"]
            assert len(at.final["choices"]) == 2

    run(scenario())
