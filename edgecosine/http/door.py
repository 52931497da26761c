"""The HTTP door of a node: opened before the model is loaded, served until the node ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute

from edgecosine.http.app import build_app
from edgecosine.http.backend import Backend, LateBackend
from edgecosine.http.catalogue import catalogue_routes
from edgecosine.http.generation import generation_routes
from edgecosine.http.server import HttpServer
from edgecosine.http.views import Views, view_routes

RouteGroup = Callable[[Backend], Sequence[BaseRoute]]
"""Makes the routes of one subject."""

ROUTE_GROUPS: Sequence[RouteGroup] = (generation_routes, catalogue_routes)


class HttpDoor:
    """Serves the routes of all groups on bound sockets; `more` are groups of the node's role."""

    def __init__(self, sockets: list[socket.socket], more: Sequence[RouteGroup] = ()) -> None:
        self.backend = LateBackend()
        """Takes requests once it is open."""
        self.port: int = sockets[0].getsockname()[1]
        self.views = Views()
        groups = [group(self.backend) for group in (*ROUTE_GROUPS, *more)]
        groups.append(view_routes(self.views))
        self._server = HttpServer(build_app(groups), sockets)

    def __repr__(self) -> str:
        return f"<HttpDoor {self.port}>"

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._server.run()
