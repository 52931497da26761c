"""The client against a gateway on a real Mosquitto."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, ConfigError, RequestError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import ChatMessage, Request, Sampling
from edgecosine.protocol.api.result import Delta
from edgecosine.protocol.api.retained_topics import OFFLINE, ONLINE
from tests.support.fakes import ScriptedService
from tests.support.mqtt import (
    HOME,
    free_port,
    gateway_harness,
    listening,
    needs_mosquitto,
    run,
    running,
)

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def completion(request_id: str, prompt: str = "or not", **fields: object) -> Request:
    return Request("me", request_id, "completion", prompt, **fields)  # type: ignore[arg-type]


async def whole(client: Client, request: Request) -> tuple[list[str], FinalMessage]:
    """All deltas and the final message."""
    texts = []
    async for step in client.ask(request):
        match step:
            case Delta(_, text):
                texts.append(text)
            case FinalMessage():
                return texts, step
    raise AssertionError("no final message")


def test_client_streams_and_ends_with_the_final_message() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            request = completion("1", stream=True, sampling=Sampling(seed=2**64 - 1))
            texts, final = await whole(client, request)
            assert "".join(texts) == final.text == "to be"
            assert final.finish_reason == "stop"
            assert final.body["edgecosine"]["seed"] == 2**64 - 1

    run(scenario())


def test_many_requests_share_one_connection() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(whole(client, completion(str(n), stream=True)))
                    for n in range(50)
                ]
            assert all("".join(task.result()[0]) == "to be" for task in tasks)

    run(scenario())


def test_choices_are_streamed_by_name_and_end_with_the_final_message() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            steps = [step async for step in client.ask(completion("1", stream=True, n=2))]
            final = steps.pop()
            assert isinstance(final, FinalMessage)
            assert final.texts == ("to be", "to be")
            deltas = [step for step in steps if isinstance(step, Delta)]
            assert [delta.index for delta in deltas] == list(range(len(deltas)))
            for choice in range(2):
                texts = [delta.text for delta in deltas if delta.choice == choice]
                assert "".join(texts) == "to be"

    run(scenario())


def test_chat_without_stream_gets_the_final_message_only() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            turns = (ChatMessage("user", "or not"),)
            texts, final = await whole(client, Request("me", "1", "chat", turns))
            assert texts == []
            assert final.text == "to be"

    run(scenario())


def test_refusal_is_raised_and_the_next_request_is_answered() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            with pytest.raises(RequestError, match="model") as refusal:
                await whole(client, completion("1", model="huge"))
            assert refusal.value.code == "model_not_found"
            assert (await whole(client, completion("2")))[1].text == "to be"

    run(scenario())


def test_leaving_the_loop_cancels_the_request() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            home.service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            assert await anext(steps) == Delta(0, "to")
            await steps.aclose()
            await home.listener.expect_state("1", "cancelled")
            assert home.service.num_closed == 1

    run(scenario())


def test_missing_gateway_is_reported() -> None:
    async def scenario() -> None:
        broker = EmbeddedBroker(port=free_port())
        async with broker, Client(broker.url, "home") as client:
            with pytest.raises(RequestError, match="no gateway") as refusal:
                await whole(client, completion("1"))
            assert refusal.value.code == "gateway_offline"

    run(scenario())


def test_missing_broker_is_reported() -> None:
    async def scenario() -> None:
        with pytest.raises(BrokerLost):
            async with Client(f"mqtt://127.0.0.1:{free_port()}", "home"):
                pass

    run(scenario())


def test_gateway_that_leaves_fails_the_request() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness() as home,
            Client(home.broker.url, "home", patience_s=0.5) as client,
        ):
            home.service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            home.gateway_task.cancel()
            with pytest.raises(RequestError) as refusal:
                await anext(steps)
            assert refusal.value.code == "shutting_down"
            with pytest.raises(RequestError, match="no gateway"):
                await whole(client, completion("2"))

    run(scenario())


def test_client_waits_for_a_restarting_gateway_and_reports_it() -> None:
    """By the active request and by a later one."""

    async def scenario() -> None:
        reports: asyncio.Queue[str | None] = asyncio.Queue()
        async with (
            EmbeddedBroker(port=free_port()) as broker,
            listening(broker) as outside,
        ):
            say = outside.mqtt_client.send
            say(Outgoing(HOME.status, ONLINE, retain=True))
            await outside.expect(HOME.status)
            async with (
                Client(broker.url, "home", on_standstill=reports.put_nowait) as client,
                asyncio.TaskGroup() as group,
            ):
                first = group.create_task(whole(client, completion("1", stream=True)))
                await outside.expect(HOME.request("completion"))
                say(Outgoing(HOME.status, OFFLINE, retain=True))
                assert "went away" in str(await reports.get())
                second = group.create_task(whole(client, completion("2")))
                assert await _failure(client, completion("3", deadline_s=0.01)) == (
                    "deadline_exceeded"
                )
                async with gateway_harness(broker=broker) as home:
                    assert await reports.get() is None
                    texts, final = await first
                    assert "".join(texts) == final.text == "to be"
                    assert (await second)[1].text == "to be"
                    assert sorted(r.request_id for r in home.service.requests) == ["1", "2"]

    run(scenario())


async def _failure(client: Client, request: Request) -> str:
    with pytest.raises(RequestError) as failure:
        await whole(client, request)
    return failure.value.code


def test_stall_of_the_target_is_reported_to_waiting_clients_only() -> None:
    async def scenario() -> None:
        reports: asyncio.Queue[str | None] = asyncio.Queue()
        async with (
            gateway_harness() as home,
            Client(home.broker.url, "home", on_standstill=reports.put_nowait) as client,
        ):
            presence = NodeStatusPublisher(
                broker=BrokerAddress.parse(home.broker.url), cluster="home", node_id="t1"
            )
            hold = home.service.hold("hm")
            async with running(presence.run()):
                presence.publish_presence("unavailable", "the engine has ended no pass for 5 s")
                while "t1" not in client._watch.unavailable:
                    await client.changed()
                assert reports.empty()
                steps = client.ask(completion("1", "hm", stream=True))
                await anext(steps)
                assert "t1 is unavailable: the engine" in str(await reports.get())
                presence.publish_presence("ready")
                assert await reports.get() is None
                hold.set()
                assert isinstance([step async for step in steps][-1], FinalMessage)

    run(scenario())


def test_id_of_an_active_request_is_refused() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            home.service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            with pytest.raises(RequestError, match="is active"):
                await whole(client, completion("1"))
            await steps.aclose()

    run(scenario())


def test_request_too_large_for_the_broker_is_not_sent() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            with pytest.raises(RequestError) as refusal:
                await whole(client, completion("1", "x" * (1 << 20)))
            assert refusal.value.code == "request_too_large"
            assert (await whole(client, completion("2")))[1].text == "to be"

    run(scenario())


def test_client_receives_the_clusters_status_and_its_changes() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, Client(home.broker.url, "home") as client:
            assert await client.is_online()
            assert (await client.info())["models"] == ["tiny"]
            assert await client.nodes() == {}
            home.listener.send(HOME.node_state("d1"), {"role": "drafter"}, retain=True)
            while not await client.nodes():
                await client.changed()
            assert (await client.nodes())["d1"].state == {"role": "drafter"}

    run(scenario())


def test_silent_gateway_without_a_will_is_offline() -> None:
    async def scenario() -> None:
        async with (
            EmbeddedBroker(port=free_port()) as broker,
            listening(broker) as listener,
            Client(broker.url, "home") as client,
        ):
            listener.send(HOME.status, ONLINE, retain=True, expiry_s=1)
            while not await client.is_online():
                await client.changed()
            while await client.is_online():
                await client.changed()
            async with Client(broker.url, "home") as late:
                assert not await late.is_online()

    run(scenario())


def test_name_invalid_in_a_topic_is_refused() -> None:
    with pytest.raises(ConfigError, match="client_id"):
        Client("mqtt://127.0.0.1", "home", client_id="a/b")


def test_invalid_messages_on_our_topics_are_ignored() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness() as home,
            Client(home.broker.url, "home", client_id="me") as client,
        ):
            gate = home.service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            for topic in (HOME.response("me", "1"), HOME.stream("me", "1"), HOME.info):
                home.listener.send(topic, b"\xff{")
            home.listener.send(HOME.response("me", "stranger"), b"{}")
            home.listener.send(HOME.stream("me", "stranger"), b"{}")
            await home.listener.expect(HOME.stream("me", "stranger"))
            gate.set()
            rest = [step async for step in steps]
            assert isinstance(rest[-1], FinalMessage)

    run(scenario())


def test_refused_request_is_sent_again_after_retry_after() -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=1)
        async with (
            gateway_harness(service, max_queued=0) as home,
            Client(home.broker.url, "home") as client,
        ):
            gate = service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            async with asyncio.TaskGroup() as group:
                second = group.create_task(whole(client, completion("2")))
                await home.listener.expect(HOME.response(client.client_id, "2"))
                gate.set()
                async for _ in steps:
                    pass
            assert second.result()[1].text == "to be"

    run(scenario())


@pytest.mark.parametrize(("retry_patience_s", "deadline_s"), [(0.0, 60.0), (30.0, 0.01)])
def test_refusal_is_raised_if_retry_after_exceeds_the_limits(
    retry_patience_s: float, deadline_s: float
) -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=1)
        async with (
            gateway_harness(service, max_queued=0) as home,
            Client(home.broker.url, "home", retry_patience_s=retry_patience_s) as client,
        ):
            service.hold("hm")
            steps = client.ask(completion("1", "hm", stream=True))
            await anext(steps)
            with pytest.raises(RequestError) as refusal:
                await whole(client, completion("2", deadline_s=deadline_s))
            assert refusal.value.code == "overloaded"
            assert refusal.value.retry_after_s
            await steps.aclose()

    run(scenario())


@pytest.mark.parametrize(("contract", "is_served"), [(1, True), (2, False), ("?", True)])
def test_gateway_with_a_later_api_version_is_refused(
    contract: int | str, *, is_served: bool
) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.listener.send(HOME.info, {"contract": contract}, retain=True)
            await home.listener.expect(HOME.info)
            async with Client(home.broker.url, "home") as client:
                if is_served:
                    assert (await whole(client, completion("1")))[1].text == "to be"
                    return
                with pytest.raises(RequestError, match="version 2 of the MQTT contract"):
                    await whole(client, completion("1"))

    run(scenario())
