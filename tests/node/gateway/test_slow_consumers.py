"""A stopped subscriber or a slow broker delays no other client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator

import pytest

from edgecosine.counters import Counters
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.outbox import MAX_BYTES, MAX_MESSAGES
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from tests.node.gateway.gateway_talk import answer, ask
from tests.support.fakes import ScriptedService
from tests.support.mqtt import (
    free_port,
    gateway_harness,
    listening,
    needs_mosquitto,
    run,
    running,
    shell,
)

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

WORD = "x" * 4096
NUM_WORDS = 100


@contextlib.asynccontextmanager
async def stopped_subscriber(port: int) -> AsyncIterator[None]:
    """A client that subscribes to all topics and reads nothing."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-p", str(port), "-t", "#", "-q", "1", "-F", "%t",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await shell("mosquitto_pub", "-p", str(port), "-t", "mark", "-m", "x", "-q", "1", "-r")
        assert process.stdout is not None
        while await process.stdout.readline() != b"mark\n":
            pass
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


def test_stopped_subscriber_delays_no_other() -> None:
    async def scenario() -> None:
        port = free_port()
        service = ScriptedService(words=(WORD,) * NUM_WORDS)
        async with (
            EmbeddedBroker(port=port) as broker,
            gateway_harness(service, broker=broker) as home,
            stopped_subscriber(port),
        ):
            # Many times what fits into the sockets' buffers.
            for number in range(20):
                ask(home, str(number), stream=True)
            for number in range(20):
                final = await answer(home, str(number))
                assert len(final["choices"][0]["text"]) == NUM_WORDS * len(WORD)
            assert not home.gateway.client.is_congested

    run(scenario())


class Valve:
    """A relay before a broker that can stop forwarding to it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_open = asyncio.Event()
        self._is_open.set()
        self.is_shut = False

    def shut(self) -> None:
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Relay; gives the port."""
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.append(group.create_task(self._carry(reader, writer)))

            server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=4096)
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                server.close()
                self.open()
                for task in tasks:
                    task.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there, self._is_open))
                group.create_task(self._pump(there_reader, writer, None))
        finally:
            for each in (there, writer):
                each.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096):
                if gate is not None:
                    await gate.wait()
                sink.write(data)
                await sink.drain()


def test_slow_broker_bounds_memory_and_gets_all_finals() -> None:
    """Ten times what the outbox may hold, half of it to be sure; the rest is counted as dropped."""

    async def scenario() -> None:
        port = free_port()
        async with EmbeddedBroker(port=port) as broker:
            valve, counters = Valve(port), Counters()
            async with (
                valve.serving() as entrance,
                listening(broker, "t/#", name="reader") as reader,
            ):
                mqtt_client = ReconnectingClient(
                    BrokerAddress("127.0.0.1", entrance), name="slow", receive=_ignore,
                    counters=counters,
                )  # fmt: skip
                async with running(mqtt_client.run()):
                    await mqtt_client.connected()
                    valve.shut()
                    payload = bytes(16 << 10)
                    for number in range(10 * MAX_BYTES // len(payload)):
                        mqtt_client.send(Outgoing(f"t/{number}", payload, qos=0))
                    assert mqtt_client.is_congested
                    for number in range(20):
                        mqtt_client.send(Outgoing("t/sure", str(number).encode()))
                    unsent = re.findall(r"(\d+) (?:waiting|in flight)", repr(mqtt_client))
                    most = MAX_BYTES // len(payload) + 21
                    assert sum(map(int, unsent)) <= most <= MAX_MESSAGES
                    num_dropped = counters.view()["dropped_messages"]
                    assert isinstance(num_dropped, int)
                    assert num_dropped >= 8 * MAX_BYTES // len(payload)
                    valve.open()
                    sure = await reader.expect("t/sure", 20)
                    assert [json.loads(each.payload) for each in sure] == [*range(20)]
                    assert not mqtt_client.is_congested

    run(scenario())


def _ignore(_: Incoming) -> None:
    pass
