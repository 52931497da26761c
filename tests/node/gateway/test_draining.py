"""Graceful shutdown: new requests are refused, and active ones are finished."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.runtime.drain import Drain, Drained
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.protocol.api.retained_topics import DRAINING
from tests.client.test_client import completion, whole
from tests.node.drafter.test_draft_worker import LANGUAGE, PREFIX, Post, at_work
from tests.node.drafter.test_draft_worker import ask as ask_drafter
from tests.node.gateway.gateway_talk import ask
from tests.support.engines import ScriptedDrafter
from tests.support.mqtt import HOME, gateway_harness, listening, needs_mosquitto, run


@needs_mosquitto
@pytest.mark.timeout(60)
def test_draining_gateway_finishes_active_requests_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            gate = home.service.hold("hm")
            ask(home, "1", prompt="hm")
            await home.listener.expect_state("1", "running")
            async with asyncio.TaskGroup() as group:
                leaving = group.create_task(home.gateway.drain())
                ask(home, "2")
                error = (await home.listener.expect_json(HOME.response("cli", "2")))["error"]
                assert (error["code"], error["status"]) == ("draining", 503)
                assert error["retry_after_s"] > 0
                async with listening(home.broker, HOME.status, name="late") as late:
                    await late.expect(HOME.status)
                    assert [m.payload for m in late.received] == [DRAINING]
                ask(home, "1", prompt="hm")  # the same request again is at work already
                assert not leaving.done()
                gate.set()
                await leaving
            final = await home.listener.expect_json(HOME.response("cli", "1"))
            assert final["choices"][0]["text"] == "to be"

    run(scenario())


@needs_mosquitto
@pytest.mark.timeout(60)
def test_client_waits_for_a_gateway_that_restarts() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            gate = home.service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            async with asyncio.TaskGroup() as group:
                leaving = group.create_task(home.gateway.drain())
                await home.listener.expect(HOME.status)
                second = group.create_task(whole(client, completion("2")))
                await home.listener.expect(HOME.response(client.client_id, "2"))
                gate.set()
                await leaving
                assert [step async for step in steps][-1].text == "to be"
                home.gateway_task.cancel()
                await asyncio.wait([home.gateway_task])
                async with gateway_harness(broker=home.broker, node_id="t2"):
                    assert (await second)[1].text == "to be"

    run(scenario())


@needs_mosquitto
@pytest.mark.timeout(60)
def test_client_without_retries_gets_the_draining_error() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness() as home,
            Client(home.broker.url, "home", retry_patience_s=0) as client,
        ):
            await home.gateway.drain()
            with pytest.raises(RequestError) as refusal:
                await whole(client, completion("1"))
            assert (refusal.value.code, refusal.value.status) == ("draining", 503)

    run(scenario())


def test_draft_worker_is_idle_without_requests() -> None:
    async def scenario() -> None:
        post = Post()
        with EngineThread("drafter") as thread:
            worker = DraftWorker(engine=ScriptedDrafter(LANGUAGE), thread=thread, max_batch=4)
            await worker.idle()
            async with at_work(worker), asyncio.TaskGroup() as group:
                for number in range(3):
                    worker.on_request(ask_drafter(PREFIX, key=f"r{number}"), post)
                group.create_task(worker.idle())
            assert len(post.answers) == 3

    run(scenario())


def test_drain_waits_for_active_work_up_to_its_timeout() -> None:
    async def scenario(timeout_s: float, *, is_done: bool) -> str:
        drain, done = Drain(timeout_s), asyncio.Event()
        if is_done:
            done.set()
        drain.by(lambda: _wait(done))
        assert not drain.is_requested
        assert drain.request()
        assert not drain.request()
        with pytest.raises(Drained) as reason:
            await drain.run()
        return str(reason.value)

    assert "the node is idle" in run(scenario(60.0, is_done=True))
    assert "did not end" in run(scenario(0.01, is_done=False))


def test_node_that_is_still_starting_drains_at_once() -> None:
    async def scenario() -> None:
        drain = Drain(60.0)
        drain.request()
        with pytest.raises(Drained):
            await drain.run()

    run(scenario())


async def _wait(done: asyncio.Event) -> None:
    await done.wait()
