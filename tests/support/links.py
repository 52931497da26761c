"""Network conditions for tests: a TCP relay whose bytes can be delayed, held, swallowed or cut off.

What is unrealistic: the relay acknowledges what it takes, so a sender sees its bytes leave even
while they are held; and delay is the same for every piece of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from edgecosine.discovery.peer import Address


class LinkConditions:
    """State of the sky over one relay.

    delay_s       one-way delay in seconds
    is_held       bytes are kept back and delivered after `release`
    is_swallowed  bytes disappear, and so do ends of files: a half-open link
    """

    def __init__(self) -> None:
        self.address = Address("127.0.0.1", 0)
        self.delay_s = 0.0
        self.is_held = False
        self.is_swallowed = False
        self.num_bytes = 0
        self._kept: list[tuple[_End, bytes]] = []
        self._ends: set[_End] = set()

    def hold(self) -> None:
        """Keep back what comes from now on."""
        self.is_held = True

    def release(self) -> None:
        """Deliver what was kept back."""
        self.is_held = False
        kept, self._kept = self._kept, []
        for end, data in kept:
            end.deliver(data)

    def swallow(self) -> None:
        """Let everything disappear from now on, without a sign to either side."""
        self.is_swallowed = True

    def cut(self) -> None:
        """Reset every connection."""
        for end in list(self._ends):
            if end.transport is not None:
                end.transport.abort()

    def stop_reading(self) -> None:
        """Take nothing from either side any more, so that its buffers fill up."""
        for end in self._ends:
            if end.transport is not None:
                end.transport.pause_reading()

    def carry(self, end: _End, data: bytes) -> None:
        """Deliver a piece to the other end, as the conditions allow."""
        self.num_bytes += len(data)
        if self.is_swallowed:
            return
        if self.is_held:
            self._kept.append((end.other, data))
        elif self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, end.other.deliver, data)
        else:
            end.other.deliver(data)

    def lost(self, end: _End) -> None:
        """One side ended; so does the other, unless nothing gets through."""
        self._ends.discard(end)
        other = end.other.transport
        if not self.is_swallowed and other is not None:
            other.close()

    def join(self, end: _End) -> None:
        """One more end of a relayed connection."""
        self._ends.add(end)


class _End(asyncio.Protocol):
    def __init__(self, conditions: LinkConditions) -> None:
        self.conditions = conditions
        self.other: _End = self
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.conditions.join(self)
        for data in self._early:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.conditions.carry(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.conditions.lost(self)

    def deliver(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)


@asynccontextmanager
async def relayed(target: Address) -> AsyncIterator[LinkConditions]:
    """A relay to `target`; dial `conditions.address` instead."""
    conditions, loop = LinkConditions(), asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:

        def accept() -> _End:
            near, far = _End(conditions), _End(conditions)
            near.other, far.other = far, near
            group.create_task(_dial(far), name="network.dial")
            return near

        async def _dial(far: _End) -> None:
            try:
                await loop.create_connection(lambda: far, target.host, target.port)
            except OSError:
                if far.other.transport is not None:
                    far.other.transport.abort()

        server = await loop.create_server(accept, "127.0.0.1", 0)
        conditions.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield conditions
        finally:
            server.close()
            conditions.cut()
