"""Where an authority can be talked to: lets invited nodes in, renews, and tells whom to trust.

It listens where the authority lives. Everybody may connect and ask who it is; all else takes an
invitation's secret or a node's certificate. It decides nothing: `security.authority` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, assert_never

from edgecosine.discovery.peer import Address
from edgecosine.errors import EnrolmentError, EnrolmentRefused
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.links.link_policy import explain
from edgecosine.node.links.listener import bind
from edgecosine.security.authority import Authority
from edgecosine.security.enrolment import (
    MAX_REQUEST_BYTES,
    Denial,
    EnrolmentAnswer,
    EnrolmentRequest,
    Introduce,
    Join,
    Renew,
    WatchTrust,
    read_request,
    write_line,
)
from edgecosine.security.files import write_private
from edgecosine.security.identity import PeerCertificate
from edgecosine.security.trust import listening_context

MAX_CONNECTIONS: Final = 512
MAX_STRANGERS: Final = 64
"""Of those, who have not shown a node's certificate; when one more comes, the oldest goes."""
WATCH_S: Final = 60.0
"""A watch is answered after this long even if nothing changed, so that the dead are noticed."""
_PATIENCE_S: Final = 10.0
_LOOK_S: Final = 0.5
_BACKLOG: Final = 64
_FRESH: Final = timedelta(days=1)

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time by the wall clock, which certificates go by."""
    return datetime.now(UTC)


class CaServer:
    """The authority's endpoint. `open`, then `run` until cancelled."""

    def __init__(
        self,
        authority: Authority,
        *,
        now: Callable[[], datetime] = utc_now,
        watch_s: float = WATCH_S,
    ) -> None:
        self._authority, self._now, self._watch_s = authority, now, watch_s
        self._revision = authority.revision
        self._changed = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        self._context_for = (0, now())
        self._sockets: list[socket.socket] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._complaints = LogThrottle()
        self.addresses: tuple[Address, ...] = ()

    def __repr__(self) -> str:
        return f"<CaServer {self._authority.cluster} [{len(self._connections)} connections]>"

    async def open(self) -> None:
        """Listen.

        Raises ConfigError when the address is not free.
        """
        host, _, port = self._authority.listen.rpartition(":")
        for listening in await bind(Address(host.strip("[]"), int(port))):
            listening.setblocking(False)
            listening.listen(_BACKLOG)
            self._sockets.append(listening)
            self.addresses += (Address(*listening.getsockname()[:2]),)
        where = ", ".join(map(str, self.addresses))
        logger.info("enrolment: cluster=%s addresses=%s", self._authority.cluster, where)

    async def run(self) -> NoReturn:
        """Answer until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for listening in self._sockets:
                    group.create_task(self._accept(group, listening), name="enrolment.accepting")
                await self._look()
        finally:
            self.close()
        raise AssertionError("an endpoint ends by cancellation")

    def close(self) -> None:
        """Listen no more; `run` does it on its way out."""
        for listening in self._sockets:
            listening.close()

    async def _look(self) -> NoReturn:
        """Notice what the command line does to the ledger."""
        while True:
            await asyncio.sleep(_LOOK_S)
            revision = self._authority.revision
            if revision != self._revision:
                self._revision = revision
                self._changed.set()
                self._changed = asyncio.Event()

    async def _accept(self, group: asyncio.TaskGroup, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("a connection could not be accepted: reason=%s", error)
                await asyncio.sleep(_LOOK_S)
                continue
            if len(self._connections) >= MAX_CONNECTIONS:
                self._complain("too many connections: one is dropped", peer[0])
                accepted.close()
                continue
            if len(self._strangers) >= MAX_STRANGERS:
                self._complain("too many strangers: the oldest is dropped", peer[0])
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()
            task = group.create_task(self._attend(accepted, peer[0]), name="enrolment")
            self._connections.add(task)
            self._strangers[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._strangers.pop(task, None)

    def _complain(self, about: str, host: str) -> None:
        if self._is_due(about):
            logger.warning("not accepted: from=%s reason=%s", host, about)

    def _is_due(self, about: str) -> bool:
        return self._complaints.is_due(about, asyncio.get_running_loop().time())

    async def _attend(self, accepted: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, accepted, ssl=self._tls()
                )
        except OSError as error:  # a TimeoutError is one, too
            if self._is_due(f"handshake {host}"):
                logger.info("no enrolment: from=%s reason=%s", host, explain(error))
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._converse(reader, writer, host)
        except (OSError, ValueError, EnrolmentError) as error:  # ValueError: a line without end
            if self._is_due(f"request {host}"):
                logger.info("no enrolment: from=%s reason=%s", host, error or type(error).__name__)
        finally:
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            line = await reader.readline()
        if not line:
            return
        request = read_request(line)
        peercert = writer.get_extra_info("peercert")
        try:
            answer = await self._answer(request, peercert, host)
        except EnrolmentRefused as error:
            what = type(request).__name__.lower()
            if self._is_due(f"{what} {host}"):
                logger.warning("not granted: from=%s asked_to=%s reason=%s", host, what, error)
            answer = Denial(str(error)[:1024])
        writer.write(write_line(answer))
        async with asyncio.timeout(_PATIENCE_S):
            await writer.drain()

    async def _answer(
        self, request: EnrolmentRequest, peercert: Mapping[str, Any] | None, host: str
    ) -> EnrolmentAnswer:
        now = self._now()
        match request:
            case Introduce():
                return self._authority.trust_list(now)
            case Join(secret, node_id, signing_request):
                admission = self._authority.admit(secret, node_id, signing_request, now)
                logger.info("let in: node=%s role=%s from=%s", node_id, admission.role, host)
                return admission
            case Renew(signing_request):
                renewed = self._authority.renew(_serial(peercert), signing_request, now)
                logger.info("certificate renewed: from=%s", host)
                return renewed
            case WatchTrust(known):
                self._authority.check_member(_serial(peercert))
                if (own := asyncio.current_task()) is not None:
                    self._strangers.pop(own, None)
                await self._until_other_than(known)
                self._authority.check_member(_serial(peercert))
                return self._authority.trust_list(self._now())
            case _:
                assert_never(request)

    async def _until_other_than(self, known: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._watch_s):
                while self._revision == known:
                    await self._changed.wait()

    def _tls(self) -> ssl.SSLContext:
        """TLS settings with a fresh certificate by the authority that signs now."""
        now, revision = self._now(), self._authority.revision
        made_for, made_at = self._context_for
        if self._context is None or made_for != revision or now - made_at > _FRESH:
            path = self._authority.folder / "endpoint.pem"
            write_private(path, self._authority.issue_endpoint(now))
            told = self._authority.trust_list(now)
            self._context = listening_context(path, told.authorities, is_required=False)
            self._context_for = (revision, now)
        return self._context


def _serial(peercert: Mapping[str, Any] | None) -> int:
    certificate = PeerCertificate.of(peercert)
    if certificate is None:
        raise EnrolmentRefused("that takes a node's certificate")
    return certificate.serial
