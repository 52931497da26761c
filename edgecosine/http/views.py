"""The views of a node: the page at `/`, the cluster's events, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from edgecosine.errors import RequestError
from edgecosine.http.backend import LOADING
from edgecosine.http.replies import EventReply
from edgecosine.metrics.families import Family
from edgecosine.metrics.prometheus import render
from edgecosine.protocol.api.answers import render_error

_LOADING_PERIOD_S: Final = 1.0
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(slots=True)
class Views:
    """The sources of a node's views, set once its model is loaded."""

    metrics: Callable[[], Sequence[Family]] | None = None
    events: Callable[[], AsyncGenerator[bytes, None]] | None = None


def view_routes(views: Views) -> Sequence[BaseRoute]:
    """The routes of the views and of the page's files."""

    async def metrics(http: HttpRequest) -> Response:
        if views.metrics is None:
            raise LOADING.error()
        text, content_type = render(views.metrics(), http.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def events(_: HttpRequest) -> ASGIApp:
        return EventReply(_events(views), _error_event, {})

    return (Route("/metrics", metrics), Route("/events", events), *_page_routes())


async def _events(views: Views) -> AsyncGenerator[bytes, None]:
    """The node's events; until its model is loaded, that it is being loaded."""
    while views.events is None:
        yield b'{"loading":true}'
        await asyncio.sleep(_LOADING_PERIOD_S)
    async with aclosing(views.events()) as events:
        async for event in events:
            yield event


def _error_event(error: RequestError) -> bytes:
    return render_error(error, "")


def _page_routes() -> list[Route]:
    """One route for each file of the page, which is read once."""
    routes = []
    for file in files("edgecosine.http").joinpath("page").iterdir():
        suffix = file.name[file.name.rindex(".") :]
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        routes.append(_file_route(path, file.read_bytes(), f"{_TYPES[suffix]}; charset=utf-8"))
    return routes


def _file_route(path: str, content: bytes, content_type: str) -> Route:
    async def file(_: HttpRequest) -> Response:
        return Response(content, headers={"content-type": content_type, **_HEADERS})

    return Route(path, file)
