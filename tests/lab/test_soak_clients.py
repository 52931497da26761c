"""Clients of a soak count each request once, with a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import Overloaded, RequestError
from edgecosine.lab.soak.clients import ClientProfile, Clients
from tests.support.fakes import ScriptedService
from tests.support.mqtt import gateway_harness, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

PROMPTS = [text for texts in zoo.prompts().values() for text in texts]


@asynccontextmanager
async def clients(
    profile: ClientProfile, service: ScriptedService | None = None
) -> AsyncIterator[Clients]:
    async with (
        gateway_harness(service) as home,
        Client(home.broker.url, "home", retry_patience_s=0) as client,
    ):
        yield Clients([client], [profile], seed=0)


def held() -> ScriptedService:
    service = ScriptedService()
    for prompt in PROMPTS:
        service.hold(prompt)
    return service


def test_served_request_is_counted_with_its_latency() -> None:
    async def scenario() -> None:
        async with clients(profile := ClientProfile("plain")) as soak:
            await soak.ask(profile)
            counts = soak.take()
            assert (counts.served, counts.num_ended, len(counts.latencies_s)) == (1, 1, 1)
            assert soak.take().num_ended == 0

    run(scenario())


def test_fickle_client_cancels_its_requests() -> None:
    async def scenario() -> None:
        async with clients(profile := ClientProfile("fickle", cancelled_share=1.0), held()) as soak:
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(soak.ask(profile))
            assert (soak.take().cancelled, soak.num_running) == (4, 0)

    run(scenario())


def test_expired_request_is_counted() -> None:
    async def scenario() -> None:
        async with clients(profile := ClientProfile("hurried", deadline_s=0.05), held()) as soak:
            await soak.ask(profile)
            assert soak.take().expired == 1

    run(scenario())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Overloaded(1.0), "refused"),
        (RequestError("broken", code="internal_error", status=500), "other_errors"),
    ],
)
def test_refusals_with_a_retry_time_and_other_errors_are_counted_separately(
    error: RequestError, kind: str
) -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.errors = dict.fromkeys(PROMPTS, error)
        async with clients(profile := ClientProfile("plain"), service) as soak:
            await soak.ask(profile)
            counts = soak.take()
            assert counts.num_ended == 1
            assert getattr(counts, kind) == {error.code: 1}

    run(scenario())
