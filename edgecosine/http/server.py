"""uvicorn as one task of our own event loop; signals are left to the node."""

from __future__ import annotations

import socket
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_CLOSE_S: Final = 2
"""Time for the last bytes of responses when the server ends."""
_MAX_CONNECTIONS: Final = 2048
_IDLE_S: Final = 65
"""Longer than the idle time of common proxies, which otherwise use a connection that just ended."""


class HttpServer:
    """Serves an application on bound sockets until `run` is cancelled."""

    def __init__(self, app: ASGIApp, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
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
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(self._sockets)
        try:
            await server.main_loop()
        finally:
            await server.shutdown(self._sockets)
