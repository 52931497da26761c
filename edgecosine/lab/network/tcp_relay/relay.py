"""The relay: carries TCP between nodes of one machine with delay, jitter and a limited rate.

`python -m edgecosine.lab.network.tcp_relay.relay SEED` reads orders from standard input, writes
replies to standard output, and ends with the input. It differs from a real network: it loses
nothing, acknowledges bytes before they are delivered, and holds them while a cable is cut.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import socket
import sys
import time
from typing import Any, assert_never

import msgspec

from edgecosine.lab.network.conditions import Cable, Lane
from edgecosine.lab.network.realtime_priority import be_punctual
from edgecosine.lab.network.traffic_messages import (
    MAX_LINE_BYTES,
    Change,
    Open,
    Plug,
    Report,
    TrafficOrder,
    read_order,
    write_reply,
)

PIECE_BYTES = 1 << 14
PIECES_IN_FLIGHT = 256

_Piece = tuple[float, bytes]
"""Due time and bytes; empty at the end of the stream."""


class Relay:
    """Servers, connections and the cables that they cross."""

    def __init__(self, seed: int, group: asyncio.TaskGroup) -> None:
        self._seed, self._group = seed, group
        self._cables: dict[str, Cable] = {}
        self._changed = asyncio.Condition()
        self._servers: list[asyncio.Server] = []

    async def execute_orders(self) -> None:
        """Execute orders until the input ends."""
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            try:
                answer = await self._carry_out(read_order(line))
            except (msgspec.MsgspecError, OSError, KeyError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            os.write(sys.stdout.fileno(), write_reply(answer))

    async def _carry_out(self, order: TrafficOrder) -> dict[str, Any]:
        match order:
            case Plug(host, conditions):
                self._cables[host] = Cable(host, conditions, self._seed, math.inf)
                return {}
            case Change(host, conditions, is_cut):
                async with self._changed:
                    self._cables[host].change(conditions, is_cut=is_cut)
                    self._changed.notify_all()
                return {}
            case Open():
                return {"port": await self._open(order)}
            case Report():
                counts = {name: cable.counts() for name, cable in self._cables.items()}
                return {"hosts": counts, "cpu_s": time.process_time()}
        assert_never(order)

    async def _open(self, order: Open) -> int:
        cables = [self._cables[host] for host in (order.source, order.destination) if host]

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._group.create_task(
                self._connect(order, cables, reader, writer), name=f"relay to {order.address}"
            )

        if order.descriptor >= 0:
            listener = socket.socket(fileno=order.descriptor)
        else:
            listener = socket.create_server(("127.0.0.1", 0))
        self._servers.append(await asyncio.start_server(accept, sock=listener))
        port: int = listener.getsockname()[1]
        return port

    async def _connect(
        self,
        order: Open,
        cables: list[Cable],
        near_reader: asyncio.StreamReader,
        near: asyncio.StreamWriter,
    ) -> None:
        try:
            far_reader, far = await asyncio.open_connection(order.address, order.port)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Up the near host's cable and down the far one's, and back in reverse.
        there = [cable.down if number else cable.up for number, cable in enumerate(cables)]
        back = [cable.up if number else cable.down for number, cable in enumerate(cables)]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(near_reader, far, there, cables))
                group.create_task(self._pump(far_reader, near, back[::-1], cables))
        except* OSError:
            # One side reset the connection, so the other is reset too.
            for end in (near, far):
                end.transport.abort()
        finally:
            for end in (near, far):
                end.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lanes: list[Lane],
        cables: list[Cable],
    ) -> None:
        """Carry one direction of a connection to the end of its stream.

        Raises OSError, in a group, when a side breaks the connection.
        """
        pieces: asyncio.Queue[_Piece] = asyncio.Queue(PIECES_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            group.create_task(_take(reader, lanes, pieces))
            group.create_task(self._deliver(pieces, writer, cables))

    async def _deliver(
        self, pieces: asyncio.Queue[_Piece], writer: asyncio.StreamWriter, cables: list[Cable]
    ) -> None:
        while True:
            due, data = await pieces.get()
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            async with self._changed:
                await self._changed.wait_for(lambda: not any(c.is_cut for c in cables))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


async def _take(
    reader: asyncio.StreamReader, lanes: list[Lane], pieces: asyncio.Queue[_Piece]
) -> None:
    while True:
        data = await reader.read(PIECE_BYTES)
        due: float | None = time.monotonic()
        for lane in lanes:
            assert due is not None, "lanes of a relay lose nothing: TCP would send it again"
            due = lane.send(due, len(data))
        assert due is not None
        await pieces.put((due, data))
        if not data:
            return


async def _main(seed: int) -> None:
    async with asyncio.TaskGroup() as group:
        obeying = group.create_task(Relay(seed, group).execute_orders(), name="relay.orders")
        await obeying
        # The owner has ended, so open connections are useless.
        os._exit(0)


if __name__ == "__main__":
    be_punctual()
    # `select` is exact to microseconds; epoll, under asyncio and libuv alike, to milliseconds.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(_main(int(sys.argv[1])))
