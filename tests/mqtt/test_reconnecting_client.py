"""A courier leaves a broker that is slow to answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.mqtt_message import Outgoing
from tests.support.mqtt import free_port, listening, needs_mosquitto, run, running

pytestmark = needs_mosquitto


@contextlib.asynccontextmanager
async def held_up(
    home: EmbeddedBroker, is_open: asyncio.Event, is_read: asyncio.Event | None = None
) -> AsyncIterator[BrokerAddress]:
    """The broker, whose answers come only while `is_open` is set, and which reads only while
    `is_read` is."""
    to = BrokerAddress.parse(home.url)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(to.host, to.port)

        async def answers() -> None:
            while data := await broker_reader.read(1 << 16):
                await is_open.wait()
                writer.write(data)
            writer.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(answers())
            while data := await reader.read(1 << 16):
                broker_writer.write(data)
                if is_read is not None:
                    await is_read.wait()
            broker_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


def test_message_in_flight_is_not_sent_again_on_disconnect() -> None:
    async def scenario() -> None:
        is_open = asyncio.Event()
        is_open.set()
        async with (
            EmbeddedBroker(port=free_port()) as home,
            listening(home, "news", "end") as listener,
            held_up(home, is_open) as address,
        ):
            leaving = ReconnectingClient(
                address,
                name="leaving",
                receive=lambda _: None,
                disconnect_messages=lambda: (Outgoing("end", b""),),
            )
            async with running(leaving.run()) as task:
                await leaving.connected()
                is_open.clear()
                leaving.send(Outgoing("news", b""))
                await listener.expect("news")
                task.cancel()
                await asyncio.sleep(0)
                is_open.set()
                await asyncio.wait([task])
            await listener.expect("end")
            assert len(await listener.expect("news")) == 1

    run(scenario())


def test_messages_of_both_kinds_keep_their_order_at_a_broker_that_stops_reading() -> None:
    async def scenario() -> None:
        is_open, is_read = asyncio.Event(), asyncio.Event()
        is_open.set()
        is_read.set()
        async with (
            EmbeddedBroker(port=free_port()) as home,
            listening(home, "news") as listener,
            held_up(home, is_open, is_read) as address,
        ):
            delivered = list[Outgoing]()
            client = ReconnectingClient(
                address, name="writer", receive=lambda _: None, delivered=delivered.append
            )
            sent = [
                Outgoing("news", bytes([n]) * (1 + n * n), qos=int(n % 7 == 0)) for n in range(256)
            ]
            async with running(client.run()):
                await client.connected()
                for message in sent[:20]:
                    client.send(message)
                await listener.expect("news", 20)
                is_read.clear()
                for message in sent[20:]:
                    client.send(message)
                    if len(message.payload) % 3 == 0:
                        await asyncio.sleep(0)
                # Nothing more is delivered once the socket is full.
                num_delivered = -1
                while num_delivered < len(delivered):
                    num_delivered = len(delivered)
                    for _ in range(1000):
                        await asyncio.sleep(0)
                assert num_delivered < len(sent), "nothing had to wait for the broker"
                is_read.set()
                received = await listener.expect("news", len(sent))
                assert [each.payload for each in received] == [each.payload for each in sent]
            assert sorted(delivered, key=sent.index) == sent

    run(scenario())
