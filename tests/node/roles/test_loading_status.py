"""A node is shown while it loads its model."""

from __future__ import annotations

import threading

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.client.health import concerns
from edgecosine.config import LinkOptions, NodeConfig, StateOptions
from edgecosine.engine.base import DraftEngine
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.errors import RequestError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.models import NGRAM
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.node import run_node
from edgecosine.node.roles import target_node
from edgecosine.node.runtime.load_engine import load_drafter
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.retained_topics import NodeView
from tests.support.mqtt import free_port, needs_mosquitto, run, running

pytestmark = needs_mosquitto

ALONE = LinkOptions(mdns=False)


async def seen(client: Client, state: str, reason: str = "") -> NodeView:
    """The only node, once this is its status, and its model is known."""
    while True:
        for view in (await client.nodes()).values():
            status = view.status
            if status and (status.state, status.reason) == (state, reason) and view.state:
                return view
        await client.changed()


def test_drafter_is_starting_while_it_loads_and_then_ready() -> None:
    may_load = threading.Event()

    def load(config: NodeConfig) -> tuple[DraftEngine, Loaded]:
        may_load.wait(10)
        return load_drafter(config)

    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            config = NodeConfig("drafter", "d", LoadOptions(NGRAM), broker=address, links=ALONE)
            async with (
                running(run_node(config, load=load)),
                Client(broker.url, "home") as client,
            ):
                view = await seen(client, "starting", f"loading {NGRAM}")
                assert view.state == {"role": "drafter", "model": NGRAM}
                may_load.set()
                await seen(client, "ready")

    run(scenario())


def test_requests_meanwhile_are_told_which_target_is_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_load = threading.Event()
    load = target_node.load_target
    monkeypatch.setattr(target_node, "load_target", lambda c: may_load.wait(10) and load(c))

    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            config = NodeConfig(
                "target", "t", LoadOptions(zoo.drafter_names()[0], threads=1),
                broker=BrokerAddress.parse(broker.url), links=ALONE, state=StateOptions(),
            )  # fmt: skip
            async with running(run_node(config)), Client(broker.url, "home") as client:
                loading = f"loading {config.engine.model}"
                view = await seen(client, "starting", loading)
                assert view.state["role"] == "target"
                reason = f"t is starting: {loading}"
                found = concerns(is_online=True, is_draining=False, nodes={"t": view})
                assert found == [reason]
                request = Request(client_id="", request_id="1", kind="completion", prompt="or")
                with pytest.raises(RequestError, match=reason):
                    [_ async for _ in client.ask(request)]
                may_load.set()
                await seen(client, "ready")

    run(scenario())
