"""Makes links: dials peers, or accepts connections, under the current trust.

The number of accepted connections that have not finished the handshake is bounded: a new one
replaces the oldest, so unauthenticated peers cannot block the listener. Rejections are logged once
a minute per host.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from edgecosine.discovery.peer import Address
from edgecosine.errors import AddressTaken, ConfigError, LinkError, LinkLost, PeerRefused
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.link_policy import ADVICE, explain

MAX_UNFINISHED: Final = 32
_BACKLOG: Final = 128
_ANY_HOST: Final = ("", "*")
_ACCEPT_RETRY_S: Final = 0.1
_UNFINISHED: Final = "unfinished"
_NOT_ACCEPTED: Final = "not accepted"

logger = logging.getLogger(__name__)


async def connect(address: Address, settings: LinkSettings) -> Link:
    """Dial a node; returns the link after a successful handshake.

    Raises LinkLost when the peer cannot be reached in time, PeerRefused when one side refuses.
    """
    if not settings.guard.may_use(address.host):
        raise LinkLost(f"{address} is beyond this machine: {ADVICE}")
    trust = settings.guard.trust
    tls = trust.dialling if trust else None
    loop = asyncio.get_running_loop()
    link = Link(settings=settings, is_dialled=True)
    try:
        async with asyncio.timeout(settings.timing.handshake_s):
            await loop.create_connection(lambda: link, address.host, address.port, ssl=tls)
        await link.wait_ready()
    except TimeoutError as error:
        raise LinkLost(f"{address} did not answer") from error
    except ssl.SSLError as error:
        raise PeerRefused(f"{address}: {explain(error)}") from error
    except OSError as error:
        raise LinkLost(f"{address} cannot be reached: {error}") from error
    finally:
        if not link.is_ready and not link.closed.done():
            link.abort("given up")
    return link


class Listener:
    """Listening sockets, and the accepted connections that have not finished the handshake.

    With a trust, connections are accepted only after `serve`.
    """

    def __init__(
        self,
        settings: LinkSettings,
        on_ready: Callable[[Link], None],
        max_unfinished: int = MAX_UNFINISHED,
    ) -> None:
        self.addresses: tuple[Address, ...] = ()
        self._settings, self._on_ready = settings, on_ready
        self._max_unfinished = max_unfinished
        self._throttle = LogThrottle()
        self._servers: list[asyncio.Server] = []
        self._secured: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._unfinished: dict[Link, None] = {}

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.addresses))
        return f"<Listener {where} | {len(self._unfinished)} unfinished>"

    @property
    def port(self) -> int:
        """Port of the first socket; further ones use it too unless opened at another."""
        return self.addresses[0].port

    async def open(self, address: Address) -> None:
        """Listen on one more address; an empty host is every IPv4 and IPv6 address, port 0 any.

        Raises ConfigError when the address is in use, not local, or not allowed unencrypted.
        """
        self._settings.guard.check("listen", str(address), address.host)
        loop = asyncio.get_running_loop()
        for listening in await bind(address):
            if self._settings.guard.trust is None:
                server = await loop.create_server(self._make_link, sock=listening, backlog=_BACKLOG)
                self._servers.append(server)
            else:
                listening.setblocking(False)
                listening.listen(_BACKLOG)
                self._secured.append(listening)
            host, port = listening.getsockname()[:2]
            self.addresses += (Address(host, port),)

    def serve(self, group: asyncio.TaskGroup) -> None:
        """Accept TLS connections; the handshakes are tasks of the group."""
        for listening in self._secured:
            task = group.create_task(self._accept(group, listening), name="accepting")
            task.add_done_callback(partial(_close, listening))
            self._accepting.append(task)

    def close(self) -> None:
        """Stop listening, and abort unfinished handshakes."""
        for task in self._accepting:
            task.cancel()
        for server in self._servers:
            server.close()
        for link in list(self._unfinished):
            link.abort("this node is stopping")

    async def _accept(self, group: asyncio.TaskGroup, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:  # no file descriptor left, or already closed by the peer
                if self._throttle.is_due(_NOT_ACCEPTED, loop.time()):
                    logger.warning("cannot accept a connection: reason=%s", error)
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            link = self._make_link()
            task = group.create_task(self._secure(accepted, peer[0], link), name="handshake")
            link.gone.add_done_callback(partial(_cancel, task))

    async def _secure(self, accepted: socket.socket, host: str, link: Link) -> None:
        """Do the TLS handshake under the current trust; the link then uses the connection."""
        loop = asyncio.get_running_loop()
        trust = self._settings.guard.trust
        assert trust is not None
        try:
            async with asyncio.timeout(self._settings.timing.handshake_s):
                await loop.connect_accepted_socket(lambda: link, accepted, ssl=trust.listening)
        except OSError as error:  # including TimeoutError
            self._log_rejected(host, PeerRefused(explain(error)))
            link.abort(explain(error))

    def _log_rejected(self, host: str, reason: LinkError) -> None:
        """Log why a connection was rejected."""
        if self._throttle.is_due(host, asyncio.get_running_loop().time()):
            logger.warning("connection rejected: from=%s reason=%s", host, reason)

    def _make_link(self) -> Link:
        if len(self._unfinished) >= self._max_unfinished:
            oldest = next(iter(self._unfinished))
            del self._unfinished[oldest]
            if self._throttle.is_due(_UNFINISHED, asyncio.get_running_loop().time()):
                logger.warning("too many unfinished handshakes: the oldest is dropped")
            oldest.abort("too many unfinished handshakes")
        link = Link(settings=self._settings, is_dialled=False, on_ready=self._finish)
        self._unfinished[link] = None
        link.gone.add_done_callback(lambda _: self._unfinished.pop(link, None))
        link.closed.add_done_callback(lambda _: self._ended(link))
        return link

    def _ended(self, link: Link) -> None:
        reason = link.closed.result()
        if link in self._unfinished and not isinstance(reason, LinkLost):
            self._log_rejected(link.host, reason)

    def _finish(self, link: Link) -> None:
        self._unfinished.pop(link, None)
        self._on_ready(link)


async def listen(
    address: Address,
    settings: LinkSettings,
    on_ready: Callable[[Link], None],
    *,
    group: asyncio.TaskGroup | None = None,
    max_unfinished: int = MAX_UNFINISHED,
) -> Listener:
    """A listener at an address; `on_ready` is called with each link after its handshake.

    Raises ConfigError when the address is in use or not local.
    """
    listener = Listener(settings, on_ready, max_unfinished)
    await listener.open(address)
    if group is not None:
        listener.serve(group)
    return listener


def _close(listening: socket.socket, _: asyncio.Task[None]) -> None:
    listening.close()


def _cancel(task: asyncio.Task[None], _: asyncio.Future[None]) -> None:
    task.cancel()


async def bind(address: Address, *, key: str = "listen") -> list[socket.socket]:
    """Bound sockets for an address in the setting `key`; an empty host is every IPv4 and IPv6
    address.

    Raises ConfigError when the address is in use or not local.
    """
    try:
        if address.host in _ANY_HOST:
            return [_bind_any(address.port)]
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return [_bind_one(family, where) for family, _, _, _, where in found[:1]]
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise AddressTaken(key, str(address)) from error
        reason = os.strerror(number) if number and number > 0 else str(error)
        raise ConfigError(key, str(address), f"an address of this machine ({reason})") from error


def _bind_any(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))  # noqa: S104 -- requested by the operator


def _bind_one(family: int, where: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except BaseException:
        bound.close()
        raise
    return bound
