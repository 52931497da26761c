"""The broker restarts: no session ends, no final is lost, and no client waits for ever."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta
from tests.support.fakes import ScriptedService
from tests.support.mqtt import HOME, free_port, listening, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

HELD = Request("", "1", "completion", "hm", stream=True)


class Home:
    """A gateway that outlives its brokers, all on one port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.service = ScriptedService(words=("to", " be", " or"))
        self.gate = self.service.hold("hm")

    def broker(self) -> EmbeddedBroker:
        """The next broker."""
        return EmbeddedBroker(port=self.port)

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        """A gateway, which need not have a broker."""
        gateway = Gateway(
            self.service, broker=BrokerAddress.parse(self.url), cluster="home", node_id="t1"
        )
        async with running(gateway.run()):
            yield gateway


def test_running_request_is_answered_after_reconnection() -> None:
    async def scenario() -> None:
        home = Home()
        async with contextlib.AsyncExitStack() as stack:
            async with home.broker():
                gateway = await stack.enter_async_context(home.gateway())
                await gateway.client.connected()
                client = await stack.enter_async_context(Client(home.url, "home"))
                steps = await stack.enter_async_context(contextlib.aclosing(client.ask(HELD)))
                assert await anext(steps) == Delta(0, "to")
            async with home.broker():
                home.gate.set()
                texts = ["to"]
                async for step in steps:
                    match step:
                        case Delta(_, text):
                            texts.append(text)
                        case FinalMessage():
                            assert step.text == "".join(texts) == "to be or"
                assert len(home.service.requests) == 1
                await stack.aclose()

    run(scenario())


def test_final_of_a_disconnected_gateway_is_kept() -> None:
    async def scenario() -> None:
        home = Home()
        async with contextlib.AsyncExitStack() as stack:
            async with home.broker() as broker:
                gateway = await stack.enter_async_context(home.gateway())
                await gateway.client.connected()
                async with listening(broker) as listener:
                    listener.send(HOME.request("completion"), {"id": "1", "prompt": "hm"})
                    await listener.expect_state("1", "running")
            home.gate.set()
            async with home.broker() as broker, listening(broker, name="again") as listener:
                final = await listener.expect_json(HOME.response("anon", "1"))
                assert final["choices"][0]["text"] == "to be or"
                await stack.aclose()

    run(scenario())


def test_client_reports_a_missing_answer() -> None:
    async def scenario() -> None:
        home = Home()
        async with contextlib.AsyncExitStack() as stack:
            async with home.broker():
                gateway = await stack.enter_async_context(home.gateway())
                await gateway.client.connected()
                client = await stack.enter_async_context(Client(home.url, "home", patience_s=0.5))
                steps = await stack.enter_async_context(contextlib.aclosing(client.ask(HELD)))
                await anext(steps)
            with pytest.raises(RequestError) as refusal:
                await anext(steps)
            assert refusal.value.code == "gateway_offline"
            await stack.aclose()

    run(scenario())


def test_gateway_waits_for_its_broker() -> None:
    async def scenario() -> None:
        home = Home()
        async with home.gateway() as gateway, home.broker(), Client(home.url, "home") as client:
            await gateway.client.connected()
            home.gate.set()
            steps = [step async for step in client.ask(HELD)]
            assert isinstance(steps[-1], FinalMessage)

    run(scenario())
