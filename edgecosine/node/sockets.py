"""How links come to be: we dial, or we listen.

Strangers cost little here: a dialled-in connection that has not agreed yet is one of a bounded
number, and when a new one comes the oldest of them goes, so that nobody can occupy the door.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from edgecosine.discovery.peer import Address
from edgecosine.errors import ConfigError, LinkLost
from edgecosine.node.link import Link, LinkSettings

MAX_UNFINISHED: Final = 32
_BACKLOG: Final = 128
_ANY_HOST: Final = ("", "*")

logger = logging.getLogger(__name__)


async def connect(
    address: Address, settings: LinkSettings, *, tls: ssl.SSLContext | None = None
) -> Link:
    """Dial a node and wait until both sides agree to be linked.

    Raises LinkLost when nobody answers in time, PeerRefused when one side refuses.
    """
    loop = asyncio.get_running_loop()
    link = Link(settings=settings, is_dialled=True)
    try:
        async with asyncio.timeout(settings.timing.handshake_s):
            await loop.create_connection(lambda: link, address.host, address.port, ssl=tls)
        await link.wait_ready()
    except TimeoutError as error:
        raise LinkLost(f"{address} did not answer") from error
    except OSError as error:
        raise LinkLost(f"{address} cannot be reached: {error}") from error
    finally:
        if not link.is_ready and not link.closed.done():
            link.abort("given up")
    return link


class Listener:
    """The door: its sockets, and the connections that have not agreed yet."""

    def __init__(
        self,
        settings: LinkSettings,
        on_ready: Callable[[Link], None],
        max_unfinished: int = MAX_UNFINISHED,
    ) -> None:
        self.addresses: tuple[Address, ...] = ()
        self._settings, self._on_ready = settings, on_ready
        self._max_unfinished = max_unfinished
        self._servers: list[asyncio.Server] = []
        self._unfinished: dict[Link, None] = {}

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.addresses))
        return f"<Listener {where} | {len(self._unfinished)} unfinished>"

    @property
    def port(self) -> int:
        """Port of the first socket; others have the same unless they were told otherwise."""
        return self.addresses[0].port

    async def open(self, address: Address, tls: ssl.SSLContext | None = None) -> None:
        """Listen on one more address; an empty host is every IPv4 and IPv6 address, port 0 any.

        Raises ConfigError when the address is not free or not ours.
        """
        loop = asyncio.get_running_loop()
        patience_s = self._settings.timing.handshake_s if tls is not None else None
        for listening in await _bind(address):
            server = await loop.create_server(
                self._make_link,
                sock=listening,
                backlog=_BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=patience_s,
            )
            self._servers.append(server)
            host, port = listening.getsockname()[:2]
            self.addresses += (Address(host, port),)

    def close(self) -> None:
        """Take no more links, and give up those that have not agreed yet."""
        for server in self._servers:
            server.close()
        for link in list(self._unfinished):
            link.abort("this node is stopping")

    def _make_link(self) -> Link:
        if len(self._unfinished) >= self._max_unfinished:
            oldest = next(iter(self._unfinished))
            del self._unfinished[oldest]
            logger.warning("too many unfinished greetings: the oldest is dropped")
            oldest.abort("too many unfinished greetings")
        link = Link(settings=self._settings, is_dialled=False, on_ready=self._finish)
        self._unfinished[link] = None
        link.gone.add_done_callback(lambda _: self._unfinished.pop(link, None))
        return link

    def _finish(self, link: Link) -> None:
        self._unfinished.pop(link, None)
        self._on_ready(link)


async def listen(
    address: Address,
    settings: LinkSettings,
    on_ready: Callable[[Link], None],
    *,
    tls: ssl.SSLContext | None = None,
    max_unfinished: int = MAX_UNFINISHED,
) -> Listener:
    """Open a door; `on_ready` is called with each link on which both sides agree.

    Raises ConfigError when the address is not free or not ours.
    """
    listener = Listener(settings, on_ready, max_unfinished)
    await listener.open(address, tls)
    return listener


async def _bind(address: Address) -> list[socket.socket]:
    try:
        if address.host in _ANY_HOST:
            return [_bind_any(address.port)]
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return [_bind_one(family, where) for family, _, _, _, where in found[:1]]
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError("listen", str(address), f"a free address here ({reason})") from error


def _bind_any(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))  # noqa: S104 -- what was asked for


def _bind_one(family: int, where: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except BaseException:
        bound.close()
        raise
    return bound
