"""One connection: addresses, versions, properties, and failures that are all BrokerLost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt import connection as mqtt
from edgecosine.mqtt.aiomqtt_client import AiomqttClient, Version
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import connect
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from tests.support.mqtt import free_port, needs_mosquitto, run

_SOONER_THAN_HEARTBEATS_S = 8.0

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://hub", BrokerAddress("hub", 1883)),
        ("mqtt://hub:1884/", BrokerAddress("hub", 1884)),
        ("mqtts://hub", BrokerAddress("hub", 8883, is_encrypted=True)),
        ("mqtt://me:p%40ss@hub", BrokerAddress("hub", 1883, "me", "p@ss")),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884)),
    ],
)
def test_address_is_read(url: str, address: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == address


@pytest.mark.parametrize(
    "url", ["", "hub", "hub:1883", "http://hub", "mqtt://", "mqtt://hub:x", "mqtt://hub/topic"]
)
def test_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="broker"):
        BrokerAddress.parse(url)


def test_password_is_never_shown() -> None:
    assert "secret" not in repr(BrokerAddress.parse("mqtt://me:secret@hub"))
    with pytest.raises(ConfigError) as refusal:
        BrokerAddress.parse("http://me:secret@hub")
    assert "secret" not in str(refusal.value)


async def echoed(broker: EmbeddedBroker, version: Version | None, message: Outgoing) -> Incoming:
    """What comes back of a message to ourselves."""
    address = BrokerAddress.parse(broker.url)
    async with connect(address, client_id="me", version=version) as connection:
        await connection.subscribe([message.topic])
        await connection.publish(message)
        async with contextlib.aclosing(connection.messages()) as messages:
            return await anext(messages)


MESSAGE = Outgoing(
    "a/b",
    b"\x00\xff",
    correlation=b"\x01",
    response_topic="a/c",
    content_type="text/plain",
    expiry_s=60,
    user=(("client", "me"), ("client", "not me")),
)


@needs_mosquitto
def test_mqtt_5_carries_properties_and_3_1_1_the_rest() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            plain = Incoming("a/b", b"\x00\xff")
            assert await echoed(broker, "3.1.1", MESSAGE) == plain
            assert await echoed(broker, None, replace(MESSAGE, expiry_s=None)) == replace(
                plain,
                correlation=b"\x01",
                response_topic="a/c",
                content_type="text/plain",
                client="me",
            )
            timed = await echoed(broker, "5", MESSAGE)
            assert timed.expiry_s is not None
            assert 0 < timed.expiry_s <= 60

    run(scenario())


@needs_mosquitto
def test_will_is_sent_after_an_unclean_end_only() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            will = Outgoing("will", b"torn", retain=True)
            async with connect(address, client_id="clean", will=will):
                pass
            async with (
                connect(address, client_id="observer") as observer,
                contextlib.aclosing(observer.messages()) as messages,
            ):
                await observer.subscribe(["will"])
                # The broker throws out the older of two connections with one name.
                async with (
                    connect(address, client_id="twin", will=will),
                    connect(address, client_id="twin"),
                ):
                    assert (await anext(messages)).payload == b"torn"

    run(scenario())


@needs_mosquitto
def test_end_of_the_broker_ends_every_wait() -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with EmbeddedBroker(port=free_port()) as broker:
                address = BrokerAddress.parse(broker.url)
                connection = await stack.enter_async_context(connect(address, client_id="me"))
            with pytest.raises(BrokerLost):
                await anext(connection.messages())
            with pytest.raises(BrokerLost):
                await connection.publish(MESSAGE)
            with pytest.raises(BrokerLost):
                await connection.subscribe(["a"])
        with pytest.raises(BrokerLost, match=r"no connection to 127\.0\.0\.1"):
            async with connect(address, client_id="me"):
                pass

    run(scenario())


@contextlib.asynccontextmanager
async def scripted_broker(
    answer: Callable[[bytes], bytes],
) -> AsyncIterator[tuple[BrokerAddress, list[int]]]:
    """A broker that answers the first packet by a script; lists the versions it was spoken to."""
    versions: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await reader.read(1000)
        if packet:
            versions.append(packet[8])
            writer.write(answer(packet))
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1]), versions


def old_and_silent(packet: bytes) -> bytes:
    """Accept 3.1.1 and do not answer 5."""
    return b"\x20\x02\x00\x00" if packet[8] == 4 else b""


def old_and_honest(packet: bytes) -> bytes:
    """Accept 3.1.1, refuse 5 as 3.1.1 does."""
    return b"\x20\x02\x00\x00" if packet[8] == 4 else b"\x20\x03\x00\x84\x00"


@pytest.mark.parametrize("answer", [old_and_silent, old_and_honest])
def test_old_broker_is_connected_by_3_1_1(
    answer: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_PROBE_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with scripted_broker(answer) as (address, versions):
            async with connect(address, client_id="me") as connection:
                assert connection.version == "3.1.1"
            assert versions == [5, 4]

    run(scenario())


def test_reset_is_noticed() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x03\x00\x00\x00")
        await reader.read(1000)
        endpoint = writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        async with server, asyncio.timeout(_SOONER_THAN_HEARTBEATS_S):
            address = BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1])
            async with connect(address, client_id="me", version="5") as connection:
                await connection.publish(Outgoing("a", b"", qos=0))
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(connection.watch())
                    with pytest.raises(BrokerLost):
                        await anext(connection.messages())
                    watching.cancel()

    run(scenario())


def test_wrong_password_is_reported_and_not_retried() -> None:
    async def scenario() -> None:
        async with scripted_broker(lambda _: b"\x20\x03\x00\x86\x00") as (address, versions):
            with pytest.raises(BrokerLost, match=r"(?i)user name or password"):
                async with connect(address, client_id="me"):
                    pass
            assert versions == [5]

    run(scenario())


@needs_mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_broker_keeps_unacknowledged_and_new_messages_of_a_session(version: Version) -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            ours = partial(connect, address, client_id="me", version=version, session_s=60)

            async def publish_to(*payloads: bytes) -> None:
                async with connect(address, client_id="you", version=version) as connection:
                    for payload in payloads:
                        await connection.publish(Outgoing("a/b", payload))

            async def receive(count: int, *acknowledged: bytes) -> list[bytes]:
                received = []
                async with ours() as connection:
                    await connection.subscribe(["a/b"])
                    if count == 2:
                        await publish_to(b"1", b"2")
                    async with contextlib.aclosing(connection.messages()) as messages:
                        while len(received) < count:
                            message = await anext(messages)
                            received.append(message.payload)
                            if message.payload in acknowledged:
                                message.acknowledge()
                return received

            assert await receive(2, b"1") == [b"1", b"2"]
            await publish_to(b"3", b"4")
            assert await receive(3, b"2", b"3") == [b"2", b"3", b"4"]
            assert await receive(1, b"4") == [b"4"]

    run(scenario())


def _hold(address: BrokerAddress) -> Coroutine[None, None, None]:
    async def hold() -> None:
        async with connect(address, client_id="me"):
            await asyncio.Event().wait()

    return hold()


async def _until_only(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until threads have ended their calls, and no other tasks are left."""
    await asyncio.to_thread(time.sleep, 0)
    while others := asyncio.all_tasks() - tasks:
        await asyncio.wait(others)


@needs_mosquitto
def test_cancelled_connection_leaves_no_task_and_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        # A single thread, so that a call ends after those before it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
        async with EmbeddedBroker(port=free_port()) as broker:
            before = asyncio.all_tasks()
            for num_steps in range(24):
                holding = asyncio.get_running_loop().create_task(
                    _hold(BrokerAddress.parse(broker.url))
                )
                for _ in range(num_steps):
                    await asyncio.to_thread(time.sleep, 0)
                holding.cancel()
                await _until_only(before)

    run(main())
    assert "Exception in callback" not in caplog.text


@needs_mosquitto
def test_connection_that_a_thread_makes_after_its_cancellation_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_begun, may_connect = asyncio.Event(), threading.Event()
    set_params = AiomqttClient._set_tls_params

    def hesitate(client: AiomqttClient) -> None:
        client._loop.call_soon_threadsafe(has_begun.set)
        may_connect.wait(20)
        set_params(client)

    monkeypatch.setattr(AiomqttClient, "_set_tls_params", hesitate)

    async def main() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            before, loop = asyncio.all_tasks(), asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
            holding = loop.create_task(_hold(BrokerAddress.parse(broker.url)))
            await has_begun.wait()
            holding.cancel()
            await asyncio.wait([holding])
            may_connect.set()
            await _until_only(before)

    run(main())
