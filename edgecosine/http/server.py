"""uvicorn as one task of our own event loop; signals are left to the node."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_CLOSE_S: Final = 2
"""Time for the last bytes of responses when the server ends."""
_MAX_CONNECTIONS: Final = 2048
_IDLE_S: Final = 65
"""Longer than the idle time of common proxies, which otherwise use a connection that just ended."""
_HEADERS_S: Final = 30.0
ABORT: Final = "abort"
"""The key in a request's state of a function that ends its connection without sending more."""


class HttpServer:
    """Serves an application on bound sockets until `run` is cancelled."""

    def __init__(
        self,
        app: ASGIApp,
        sockets: list[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        headers_s: float = _HEADERS_S,
    ) -> None:
        """A connection without a whole request header is closed after `headers_s` seconds."""
        self._sockets, self._tls = sockets, tls
        protocol = type("Connection", (_Connection,), {"headers_s": headers_s})
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )

    async def run(self) -> None:
        """Serve until cancelled; then responses that are complete are sent."""
        server = self._server
        server.config.load()
        server.config.ssl = self._tls
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(self._sockets)
        try:
            await server.main_loop()
        finally:
            await server.shutdown(self._sockets)


class _Connection(H11Protocol):
    """Closes a connection whose request header does not arrive in time; uvicorn itself limits only
    the silence between two requests."""

    headers_s = _HEADERS_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {ABORT: transport.abort}
        self._deadline = self.loop.call_later(self.headers_s, self._expire)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is None and not self._is_serving:
            self._deadline = self.loop.call_later(self.headers_s, self._expire)
        elif self._deadline is not None and self._is_serving:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()

    @property
    def _is_serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expire(self) -> None:
        self._deadline = None
        if not self._is_serving:
            self.transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
