"""A real broker, its own command-line clients, and a gateway in front of a scripted service."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import uvloop

from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.node.gateway.disconnected_clients import GRACE_S
from edgecosine.node.gateway.gateway import MAX_REQUEST_BYTES, Gateway
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.topics import Topics
from tests.support.fakes import ScriptedService

HOME = Topics("home")
PATIENCE_S = 20.0
COMMANDS_S = 100.0
"""Time limit of tests that start several commands, one after the other."""

needs_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None
    or shutil.which("mosquitto_rr") is None,
    reason="mosquitto and mosquitto-clients are not installed",
)

T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T], limit_s: float = 2 * PATIENCE_S) -> T:
    """Run a coroutine as a node runs, under a time limit. No callback may fail."""
    failures: list[dict[str, Any]] = []

    async def limited() -> T:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        async with asyncio.timeout(limit_s):
            return await scenario

    result = uvloop.run(limited(), debug=True)
    assert failures == []
    return result


def run_patiently(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that starts whole processes, under pytest's time limit only."""
    return uvloop.run(scenario)


_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.cycle(range(10_000 + 1_000 * _worker, 11_000 + 1_000 * _worker))
"""Below the ports that Linux gives to outgoing connections, and each test worker has its own: a
port that is free now is still free when a server opens it."""


def free_port() -> int:
    """Return a free port of the loopback interface, one that was not returned lately."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports never end")


class Listener:
    """Collects messages, so that a test can wait for expected ones."""

    def __init__(self, broker: BrokerAddress, filters: tuple[str, ...], name: str) -> None:
        self.received: list[Incoming] = []
        self._news = asyncio.Event()
        self.mqtt_client = ReconnectingClient(
            broker, name=name, receive=self.receive, filters=filters
        )

    def receive(self, message: Incoming) -> None:
        self.received.append(message)
        self._news.set()

    async def expect(self, topic: str, count: int = 1) -> list[Incoming]:
        """Wait for `count` messages on one topic."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [m for m in self.received if m.topic == topic]) < count:
                self._news.clear()
                await self._news.wait()
        return found

    async def expect_json(self, topic: str) -> Any:
        """Wait for one message on a topic and read it."""
        return json.loads((await self.expect(topic))[-1].payload)

    async def expect_state(self, request_id: str, state: str) -> None:
        """Wait until a request is in a state."""
        async with asyncio.timeout(PATIENCE_S):
            while state not in self.states(request_id):
                self._news.clear()
                await self._news.wait()

    def states(self, request_id: str) -> list[str]:
        """Return all published states of a request, in order."""
        return [
            json.loads(message.payload)["state"]
            for message in self.received
            if message.topic == HOME.job_state(request_id)
        ]

    def send(self, topic: str, payload: bytes | str | dict[str, Any], **fields: Any) -> None:
        """Publish a payload; a dict is sent as JSON."""
        if isinstance(payload, dict):
            payload = json.dumps(payload)
        if isinstance(payload, str):
            payload = payload.encode()
        self.mqtt_client.send(Outgoing(topic, payload, **fields))


@contextlib.asynccontextmanager
async def listening(
    broker: EmbeddedBroker, *filters: str, name: str = "listener"
) -> AsyncIterator[Listener]:
    """Run a listener on these topics, by default on all of the cluster."""
    listener = Listener(BrokerAddress.parse(broker.url), filters or (f"{HOME.root}/#",), name)
    async with running(listener.mqtt_client.run()):
        await listener.mqtt_client.connected()
        yield listener


@contextlib.asynccontextmanager
async def running(actor: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run an actor within the block, and cancel it afterwards."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(actor)
        yield task
        task.cancel()


@dataclass
class GatewayHarness:
    """A broker, a gateway with its service, and a listener on all topics."""

    broker: EmbeddedBroker
    service: ScriptedService
    gateway: Gateway
    listener: Listener
    gateway_task: asyncio.Task[Any]


@contextlib.asynccontextmanager
async def gateway_harness(
    service: ScriptedService | None = None,
    *,
    broker: EmbeddedBroker | None = None,
    node_id: str = "t1",
    max_queued: int = 64,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    absence_s: float = GRACE_S,
) -> AsyncIterator[GatewayHarness]:
    """Run a gateway and a listener, on the given broker or a new one."""
    service = service or ScriptedService()
    async with contextlib.AsyncExitStack() as stack:
        if broker is None:
            broker = await stack.enter_async_context(EmbeddedBroker(port=free_port()))
        gateway = Gateway(
            service,
            broker=BrokerAddress.parse(broker.url),
            cluster="home",
            node_id=node_id,
            max_queued=max_queued,
            max_request_bytes=max_request_bytes,
            absence_s=absence_s,
        )
        task = await stack.enter_async_context(running(gateway.run()))
        await gateway.client.connected()
        listener = await stack.enter_async_context(listening(broker, name=f"listener-{node_id}"))
        yield GatewayHarness(broker, service, gateway, listener, task)


async def shell(*command: str) -> str:
    """Run a command-line client and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return output.decode()
