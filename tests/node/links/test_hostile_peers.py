"""Hostile peers are refused with a reason, and a good peer is served."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from edgecosine.discovery.peer import Address
from edgecosine.node.links.heartbeat import Timing
from edgecosine.node.links.link import LinkSettings
from edgecosine.protocol.wire.codec import decode, encode
from edgecosine.protocol.wire.framing import FrameBuffer, frame
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Ping,
    Pong,
    Refuse,
    Release,
)
from edgecosine.protocol.wire.vocabulary import Vocabulary
from tests.node.links.wire_fixtures import (
    QUICK,
    WORDS,
    ListenerFixture,
    assert_serves_a_good_peer,
    drafter_settings,
    listening_node,
    logbook,
    request,
    run,
    target_hello,
)


class RawPeer:
    """A raw connection that sends any messages, and receives messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._buffer = FrameBuffer(1 << 21)

    def send(self, *messages: AnyMessage) -> None:
        self.writer.write(b"".join(frame(encode(message)) for message in messages))

    async def receive(self) -> AnyMessage | None:
        """The next message; None at the end of file."""
        while (payload := self._buffer.next_frame()) is None:
            try:
                data = await self.reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer.feed(data)
        return decode(payload)

    async def receive_refusal(self) -> Refuse:
        while not isinstance(message := await self.receive(), Refuse):
            assert message is not None, "the link ended without a refusal"
        return message

    async def receive_end(self) -> None:
        while await self.receive() is not None:
            pass

    async def get_ready(self) -> None:
        self.send(target_hello(), Ping(0))
        while not isinstance(message := await self.receive(), Ping):
            assert message is not None
        self.send(Pong(message.number))


@asynccontextmanager
async def raw_peer(address: Address) -> AsyncIterator[RawPeer]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def raw_link(
    settings: LinkSettings | None = None,
) -> AsyncIterator[tuple[ListenerFixture, RawPeer]]:
    """A listening node and a raw peer; after its end a good peer is served."""
    async with listening_node(settings) as drafter:
        async with raw_peer(drafter.address) as peer:
            yield drafter, peer
        await assert_serves_a_good_peer(drafter.address)


def chunks_of_noise() -> Iterator[bytes]:
    for seed in range(20):
        source = random.Random(seed)
        yield source.randbytes(source.randrange(1, 2000))


def test_random_bytes_end_a_connection() -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            for noise in chunks_of_noise():
                async with raw_peer(drafter.address) as peer:
                    peer.writer.write(noise)
                    peer.writer.write_eof()
                    await peer.receive_end()
            await assert_serves_a_good_peer(drafter.address)

    run(main())


REFUSED: dict[str, tuple[bytes, str]] = {
    "a frame announcing 4 GiB": (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
    "an HTTP request": (b"GET / HTTP/1.1\r\n\r\n", "announced a frame of"),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01", "speaks TLS, this node plain text"),
    "an empty frame": (frame(b""), "not bounded msgpack"),
    "a greeting frame beyond its cap": (b"\x00\x04\x00\x01", "the cap is 262144"),
    "an array of four billion": (frame(b"\xdd\xff\xff\xff\xff"), "not bounded msgpack"),
    "deep nesting": (frame(b"\x91" * 10_000), "an invalid message"),
    "work before the greeting": (frame(encode(Release("a"))), "release before the greeting"),
    "a pong before the greeting": (frame(encode(Pong(0))), "pong before the greeting"),
    "two greetings": (2 * frame(encode(target_hello())), "hello before the first pong"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_greetings_are_refused(data: bytes, reason: str) -> None:
    async def main() -> None:
        async with raw_link() as (_, peer):
            peer.writer.write(data)
            assert reason in (await peer.receive_refusal()).reason
            await peer.receive_end()

    run(main())


OUT_OF_ORDER: dict[str, tuple[AnyMessage, str]] = {
    "a draft from a target": (Draft("a", 0, b"", b""), "the peer sent draft while ready"),
    "a second greeting": (target_hello(), "the peer sent hello while ready"),
    "a pong to no ping": (Pong(77), "pong 77 to a ping that was never sent"),
    "a request cut off": (DraftRequest("a", 0, 4, 0, b"123", 1), "tokens are cut off"),
}


@pytest.mark.parametrize(("message", "reason"), OUT_OF_ORDER.values(), ids=OUT_OF_ORDER.keys())
def test_protocol_errors_end_a_ready_link(message: AnyMessage, reason: str) -> None:
    async def main() -> None:
        async with raw_link() as (drafter, peer):
            await peer.get_ready()
            link = await drafter.ready.get()
            peer.send(message)
            assert reason in (await peer.receive_refusal()).reason
            assert reason in str(await link.closed)

    run(main())


def test_other_protocol_version_gets_advice() -> None:
    async def main() -> None:
        async with raw_link() as (_, peer):
            peer.send(target_hello(protocol=2))
            assert "install the same release on both" in (await peer.receive_refusal()).reason

    run(main())


def test_unknown_fields_of_a_later_greeting_are_ignored() -> None:
    async def main() -> None:
        async with raw_link() as (_, peer):
            fields = msgspec.to_builtins(target_hello(protocol=2), builtin_types=(bytes,))
            peer.writer.write(frame(msgspec.msgpack.encode([*fields, "new", 1])))
            assert "protocol 2 there, 1 here" in (await peer.receive_refusal()).reason

    run(main())


def test_different_vocabulary_gets_the_differing_block() -> None:
    other = Vocabulary.of([f"word{n}" if n != 300 else "x" for n in range(600)])

    async def main() -> None:
        async with raw_link(drafter_settings(vocabulary=WORDS)) as (_, peer):
            greeting = msgspec.structs.replace(target_hello(), vocabulary=other.digests)
            peer.send(greeting)
            refusal = await peer.receive_refusal()
            difference = other.difference(refusal.block_index, refusal.block)
            assert str(difference) == "token 300 is b'x' here and b'word300' there"

    run(main())


def test_refused_peer_that_keeps_sending_is_dropped() -> None:
    async def main() -> None:
        async with raw_link() as (drafter, peer):
            peer.send(target_hello(cluster="other"))
            await peer.receive_refusal()
            peer.send(Ping(1), Release("a"), Ping(2))
            await peer.receive_end()
            assert drafter.ready.empty()

    run(main())


def test_slow_greeting_times_out() -> None:
    async def main() -> None:
        patience = Timing(heartbeat_s=30.0, handshake_s=0.1, linger_s=0.1)
        async with raw_link(drafter_settings(timing=patience)) as (drafter, peer):
            peer.writer.write(frame(encode(target_hello()))[:7])
            await peer.receive_end()
            assert drafter.ready.empty()

    run(main())


def test_greeting_byte_by_byte_is_accepted_in_time() -> None:
    async def main() -> None:
        async with raw_link() as (drafter, peer):
            for byte in frame(encode(target_hello())) + frame(encode(Ping(0))):
                peer.writer.write(bytes((byte,)))
                await peer.writer.drain()
            while not isinstance(message := await peer.receive(), Ping):
                assert message is not None
            peer.send(Pong(message.number))
            (await drafter.ready.get()).abort("seen")

    run(main())


async def send_slowly(peer: RawPeer, data: bytes) -> None:
    """Send data byte by byte, slowly, until the connection ends."""
    for byte in data:
        if peer.writer.is_closing():
            return
        peer.writer.write(bytes((byte,)))
        await asyncio.sleep(0.01)


def test_greeting_byte_by_byte_times_out() -> None:
    async def main() -> None:
        patience = Timing(heartbeat_s=30.0, handshake_s=0.2, linger_s=0.1)
        async with raw_link(drafter_settings(timing=patience)) as (drafter, peer):
            async with asyncio.TaskGroup() as group:
                endless = frame(encode(target_hello(model="x" * 250)))[:-1] + bytes(1000)
                dripping = group.create_task(send_slowly(peer, endless), name="dripping")
                await peer.receive_end()
                dripping.cancel()
            assert drafter.ready.empty()

    run(main())


def test_incomplete_frame_and_silence_end_a_ready_link() -> None:
    async def main() -> None:
        async with raw_link(drafter_settings(timing=QUICK)) as (drafter, peer):
            await peer.get_ready()
            link = await drafter.ready.get()
            peer.writer.write(frame(bytes(1 << 20))[:1000])
            assert "silent for 0.15 s" in str(await link.closed)

    run(main())


def test_frame_byte_by_byte_without_a_pong_ends_a_ready_link() -> None:
    async def main() -> None:
        strict = replace(QUICK, unanswered_heartbeats=5)
        async with raw_link(drafter_settings(timing=strict)) as (drafter, peer):
            await peer.get_ready()
            link = await drafter.ready.get()
            async with asyncio.TaskGroup() as group:
                frame_without_end = frame(bytes(1 << 20))
                dripping = group.create_task(send_slowly(peer, frame_without_end), name="dripping")
                assert "answered no ping for 5 heartbeats" in str(await link.closed)
                dripping.cancel()

    run(main())


def test_flood_of_connections_is_logged_once() -> None:
    async def main() -> None:
        with logbook() as book:
            async with listening_node(max_unfinished=2) as drafter:
                connections = [await asyncio.open_connection(*drafter.address) for _ in range(200)]
                await assert_serves_a_good_peer(drafter.address)
                for _, writer in connections:
                    writer.close()
        assert sum("too many unfinished handshakes" in line for line in book.lines) == 1

    run(main())


def test_greeting_without_a_ping_times_out() -> None:
    async def main() -> None:
        patience = Timing(heartbeat_s=30.0, handshake_s=0.1, linger_s=0.1)
        async with raw_link(drafter_settings(timing=patience)) as (drafter, peer):
            peer.send(target_hello())
            await peer.receive_end()
            assert drafter.ready.empty()

    run(main())


def test_many_unfinished_connections_do_not_block_a_peer() -> None:
    async def main() -> None:
        async with listening_node(max_unfinished=4) as drafter:
            connections = [await asyncio.open_connection(*drafter.address) for _ in range(12)]
            for reader, _ in connections:
                assert isinstance(await RawPeer(reader, _).receive(), Hello)
            await assert_serves_a_good_peer(drafter.address)
            assert "4 unfinished" in repr(drafter.listener) or "3 unf" in repr(drafter.listener)
            for _, writer in connections:
                writer.close()

    run(main())


def test_unauthenticated_peer_that_never_reads_is_dropped() -> None:
    async def main() -> None:
        impatient = replace(drafter_settings(), max_unsent_bytes=1 << 16)
        async with listening_node(impatient) as drafter:
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, drafter.address)
            greeting = (target_hello(), Ping(0), Pong(0))
            await loop.sock_sendall(deaf, b"".join(frame(encode(said)) for said in greeting))
            link = await drafter.ready.get()
            assert link._socket._transport is not None
            their_socket = link._socket._transport.get_extra_info("socket")
            their_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            flood = frame(encode(request(1))) * 1000
            while not link.closed.done():
                try:
                    await loop.sock_sendall(deaf, flood)
                except ConnectionError:
                    break
            assert "does not read" in str(await link.closed)
            deaf.close()
            await assert_serves_a_good_peer(drafter.address)

    run(main())
