"""A gateway node: HTTP on one machine, targets behind a broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx

from edgecosine.config import HttpOptions, NodeConfig
from edgecosine.engine.options import LoadOptions
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.node import run_node
from edgecosine.node.runtime.drain import Drain
from tests.support.fakes import ScriptedService
from tests.support.mqtt import GatewayHarness, free_port, gateway_harness, run, running

CHAT = {"messages": [{"role": "user", "content": "or not"}]}
CHATS = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def gateway_node(home: GatewayHarness, drain: Drain) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway node and an HTTP client of it."""
    listen = f"127.0.0.1:{free_port()}"
    config = NodeConfig(
        role="gateway", node_id="g", engine=LoadOptions(model=""), http=HttpOptions(listen),
        broker=BrokerAddress.parse(home.broker.url),
    )  # fmt: skip
    async with (
        running(run_node(config, drain)),
        httpx.AsyncClient(base_url=f"http://{listen}", timeout=10, trust_env=False) as client,
    ):
        while True:
            with contextlib.suppress(httpx.ConnectError):
                if (await client.get("/ready")).status_code == 200:
                    break
            await asyncio.sleep(0.05)
        yield client


async def _refused(client: httpx.AsyncClient) -> str:
    """Wait until no requests are taken; the error's code."""
    while True:
        reply = await client.get("/ready")
        if reply.status_code != 200:
            return str(reply.json()["error"]["code"])
        await asyncio.sleep(0.02)


def test_gateway_answers_cancels_and_drains() -> None:
    async def scenario() -> None:
        service, drain = ScriptedService(), Drain()
        async with gateway_harness(service) as home, gateway_node(home, drain) as client:
            (model,) = (await client.get("/v1/models")).json()["data"]
            assert (model["id"], model["max_model_len"]) == ("tiny", 1024)
            whole = await client.post(CHATS, json=CHAT)
            assert whole.json()["choices"][0]["message"]["content"] == "to be"
            streamed = await client.post(CHATS, json={**CHAT, "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
            held = service.hold("or not")
            async with running(client.post(CHATS, json={**CHAT, "stream": True})):
                await service.begun(3)
            await service.ended(3)
            refused = await client.post("/tokenize", json={"prompt": "x"})
            assert refused.json()["error"]["code"] == "no_tokenizer"
            async with asyncio.TaskGroup() as group:
                last = group.create_task(client.post(CHATS, json=CHAT))
                await service.begun(4)
                drain.request()
                await _refused(client)
                held.set()
            assert last.result().status_code == 200

    run(scenario())


def test_gateway_without_a_target_refuses() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, gateway_node(home, Drain()) as client:
            home.gateway_task.cancel()
            assert await _refused(client) == "gateway_offline"

    run(scenario())
