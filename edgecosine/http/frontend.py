"""The HTTP frontend of a node: opened before the model is loaded, served until the node ends."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection, Sequence

from starlette.routing import BaseRoute

from edgecosine.http.access import AccessControl, Keys, NoKeys
from edgecosine.http.app import build_app
from edgecosine.http.backend import Backend, LateBackend
from edgecosine.http.catalogue import catalogue_routes
from edgecosine.http.generation import generation_routes
from edgecosine.http.openapi import description_routes
from edgecosine.http.server import HttpServer
from edgecosine.http.tokenization import tokenization_routes
from edgecosine.http.views import Views, view_routes

RouteGroup = Callable[[Backend], Sequence[BaseRoute]]
"""Makes the routes of one subject."""

ROUTE_GROUPS: Sequence[RouteGroup] = (
    generation_routes,
    tokenization_routes,
    catalogue_routes,
    description_routes,
)


class HttpFrontend:
    """Serves the routes of all groups on bound sockets; `more` are groups of the node's role.

    keys     those of clients, which are needed where there are some
    origins  of pages that may ask, beside the frontend's own
    tls      settings of TLS; None: plain text
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        more: Sequence[RouteGroup] = (),
        *,
        keys: Keys | None = None,
        origins: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sockets = sockets
        self.backend = LateBackend()
        """Takes requests once it is open."""
        host, self.port = sockets[0].getsockname()[:2]
        is_local = ipaddress.ip_address(host).is_loopback
        self.views = Views()
        groups = [group(self.backend) for group in (*ROUTE_GROUPS, *more)]
        groups.append(view_routes(self.views))
        app = AccessControl(build_app(groups), keys or NoKeys(), origins=origins, is_local=is_local)
        self._server = HttpServer(app, sockets, tls=tls)

    def __repr__(self) -> str:
        return f"<HttpFrontend {self.port}>"

    def close(self) -> None:
        """Close the sockets of a frontend that does not run."""
        for listening in self._sockets:
            listening.close()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._server.run()
