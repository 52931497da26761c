"""Server of the cluster's authority (CA): enrols invited nodes, renews, serves the trust list.

It runs on the authority's machine. The authority's certificate is public; all other requests need
an invitation's secret or a node's certificate. `security.authority` makes the decisions.
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
MAX_UNAUTHENTICATED: Final = 64
"""Connections without a node's certificate; a further one replaces the oldest."""
WATCH_S: Final = 60.0
"""A watch gets a reply after this time at the latest, so that dead connections are noticed."""
_PATIENCE_S: Final = 10.0
_POLL_S: Final = 0.5
_BACKLOG: Final = 64
_FRESH: Final = timedelta(days=1)

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The wall-clock time, which certificates are checked against."""
    return datetime.now(UTC)


class CaServer:
    """Call `open`, then `run` until cancelled."""

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
        self._unauthenticated: dict[asyncio.Task[None], None] = {}
        self._throttle = LogThrottle()
        self.addresses: tuple[Address, ...] = ()

    def __repr__(self) -> str:
        return f"<CaServer {self._authority.cluster} [{len(self._connections)} connections]>"

    async def open(self) -> None:
        """Listen.

        Raises ConfigError when the address is in use.
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
        """Serve requests until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for listening in self._sockets:
                    group.create_task(self._accept(group, listening), name="enrolment.accepting")
                await self._poll()
        finally:
            self.close()
        raise AssertionError("the server ends by cancellation")

    def close(self) -> None:
        """Stop listening; `run` does this when it ends."""
        for listening in self._sockets:
            listening.close()

    async def _poll(self) -> NoReturn:
        """Poll for changes that the command line makes to the database."""
        while True:
            await asyncio.sleep(_POLL_S)
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
                logger.warning("cannot accept a connection: reason=%s", error)
                await asyncio.sleep(_POLL_S)
                continue
            if len(self._connections) >= MAX_CONNECTIONS:
                self._log_rejected("too many connections: one is dropped", peer[0])
                accepted.close()
                continue
            if len(self._unauthenticated) >= MAX_UNAUTHENTICATED:
                self._log_rejected("too many unauthenticated peers: the oldest is dropped", peer[0])
                oldest = next(iter(self._unauthenticated))
                del self._unauthenticated[oldest]
                oldest.cancel()
            task = group.create_task(self._serve(accepted, peer[0]), name="enrolment")
            self._connections.add(task)
            self._unauthenticated[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._unauthenticated.pop(task, None)

    def _log_rejected(self, about: str, host: str) -> None:
        if self._is_due(about):
            logger.warning("connection rejected: from=%s reason=%s", host, about)

    def _is_due(self, about: str) -> bool:
        return self._throttle.is_due(about, asyncio.get_running_loop().time())

    async def _serve(self, accepted: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, accepted, ssl=self._tls()
                )
        except OSError as error:  # including TimeoutError
            if self._is_due(f"handshake {host}"):
                logger.info("enrolment failed: from=%s reason=%s", host, explain(error))
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._reply_to(reader, writer, host)
        except (
            OSError,
            ValueError,
            EnrolmentError,
        ) as error:  # ValueError: a long line
            if self._is_due(f"request {host}"):
                logger.info(
                    "enrolment failed: from=%s reason=%s", host, error or type(error).__name__
                )
        finally:
            writer.close()

    async def _reply_to(
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
                logger.warning("request refused: from=%s request=%s reason=%s", host, what, error)
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
                logger.info("node enrolled: node=%s role=%s from=%s", node_id, admission.role, host)
                return admission
            case Renew(signing_request):
                renewed = self._authority.renew(_serial(peercert), signing_request, now)
                logger.info("certificate renewed: from=%s", host)
                return renewed
            case WatchTrust(known):
                self._authority.check_member(_serial(peercert))
                if (own := asyncio.current_task()) is not None:
                    self._unauthenticated.pop(own, None)
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
        """TLS settings with a certificate of at most one day, signed by the current key."""
        now, revision = self._now(), self._authority.revision
        made_for, made_at = self._context_for
        if self._context is None or made_for != revision or now - made_at > _FRESH:
            path = self._authority.folder / "endpoint.pem"
            write_private(path, self._authority.issue_endpoint(now))
            trusted = self._authority.trust_list(now)
            self._context = listening_context(path, trusted.authorities, is_required=False)
            self._context_for = (revision, now)
        return self._context


def _serial(peercert: Mapping[str, Any] | None) -> int:
    certificate = PeerCertificate.of(peercert)
    if certificate is None:
        raise EnrolmentRefused("this request needs a node's certificate")
    return certificate.serial
