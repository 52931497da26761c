"""Every request of a soak's clients ends as one kind, before a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import Overloaded, RequestError
from edgecosine.lab.soak.clients import Clients, Manner
from tests.support.fakes import ScriptedService
from tests.support.mqtt import house, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

PROMPTS = [text for texts in zoo.prompts().values() for text in texts]


@asynccontextmanager
async def clients(manner: Manner, service: ScriptedService | None = None) -> AsyncIterator[Clients]:
    async with (
        house(service) as home,
        Client(home.broker.url, "home", retry_patience_s=0) as client,
    ):
        yield Clients([client], [manner], seed=0)


def held() -> ScriptedService:
    service = ScriptedService()
    for prompt in PROMPTS:
        service.hold(prompt)
    return service


def test_answer_is_served_and_its_latency_is_taken() -> None:
    async def story() -> None:
        async with clients(manner := Manner("plain")) as soak:
            await soak.ask(manner)
            tally = soak.take()
            assert (tally.served, tally.num_ended, len(tally.latencies_s)) == (1, 1, 1)
            assert soak.take().num_ended == 0

    run(story())


def test_fickle_client_cancels_at_the_first_text_or_soon() -> None:
    async def story() -> None:
        async with clients(manner := Manner("fickle", cancelled_share=1.0), held()) as soak:
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(soak.ask(manner))
            assert (soak.take().cancelled, soak.num_at_work) == (4, 0)

    run(story())


def test_deadline_expires() -> None:
    async def story() -> None:
        async with clients(manner := Manner("hurried", deadline_s=0.05), held()) as soak:
            await soak.ask(manner)
            assert soak.take().expired == 1

    run(story())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Overloaded(1.0), "refused"),
        (RequestError("broken", code="internal_error", status=500), "other_errors"),
    ],
)
def test_refusal_with_a_hint_is_no_error_and_any_other_is(error: RequestError, kind: str) -> None:
    async def story() -> None:
        service = ScriptedService()
        service.errors = dict.fromkeys(PROMPTS, error)
        async with clients(manner := Manner("plain"), service) as soak:
            await soak.ask(manner)
            tally = soak.take()
            assert tally.num_ended == 1
            assert getattr(tally, kind) == {error.code: 1}

    run(story())
