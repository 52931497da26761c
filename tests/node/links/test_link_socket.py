"""Messages of one iteration of the event loop leave together, and before the end of the link."""

from __future__ import annotations

import asyncio
from typing import Any

from edgecosine.node.links.link_socket import MAX_HELD_BYTES, LinkSocket
from edgecosine.protocol.wire.codec import encode
from edgecosine.protocol.wire.framing import frame
from edgecosine.protocol.wire.messages import AnyMessage, Ping
from tests.node.links.wire_fixtures import request, run


class Recorder(asyncio.Transport):
    """Keeps what is written to it; `None` stands for the end."""

    def __init__(self, **facts: object) -> None:
        super().__init__(facts)
        self.written: list[bytes | None] = []
        self._is_closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written.append(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def abort(self) -> None:
        self._is_closing = True


def framed(*messages: AnyMessage) -> bytes:
    """The messages as they are sent."""
    return b"".join(frame(encode(message)) for message in messages)


def opened() -> tuple[LinkSocket, Recorder]:
    """A socket with a connection."""
    socket, transport = LinkSocket(linger_s=5.0), Recorder()
    socket.connected(transport, 1 << 20)
    return socket, transport


def test_messages_of_one_iteration_leave_in_one_write_in_their_order() -> None:
    async def main() -> None:
        socket, transport = opened()
        for number in range(3):
            socket.write(Ping(number))
        await asyncio.sleep(0)
        socket.write(Ping(3))
        await asyncio.sleep(0)
        assert transport.written == [framed(Ping(0), Ping(1), Ping(2)), framed(Ping(3))]

    run(main())


def test_a_long_message_leaves_at_once_behind_those_before_it() -> None:
    async def main() -> None:
        socket, transport = opened()
        long = request(new_tokens=bytes(MAX_HELD_BYTES), prefix_len=MAX_HELD_BYTES)
        socket.write(Ping(0))
        socket.write(long)
        assert transport.written == [framed(Ping(0), long)]
        socket.write(Ping(1))
        await asyncio.sleep(0)
        assert transport.written[1:] == [framed(Ping(1))]

    run(main())


def test_messages_leave_before_the_end_of_the_link() -> None:
    async def main() -> None:
        socket, transport = opened()
        socket.write(Ping(0))
        socket.finish()
        assert transport.written == [framed(Ping(0)), None]
        socket.drop()

    run(main())


def test_nothing_is_written_to_a_dropped_link() -> None:
    async def main() -> None:
        socket, transport = opened()
        socket.write(Ping(0))
        socket.drop()
        await asyncio.sleep(0)
        assert transport.written == []

    run(main())


def test_ends_with_one_address_are_within_a_machine() -> None:
    async def main() -> None:
        for own, peer, is_within in (
            (("::1", 1, 0, 0), ("::1", 2, 0, 0), True),
            (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        ):
            socket = LinkSocket(linger_s=5.0)
            assert not socket.is_within_machine
            socket.connected(Recorder(sockname=own, peername=peer), 1 << 20)
            assert socket.is_within_machine == is_within

    run(main())
