"""The ASGI application, from groups of routes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from edgecosine.errors import Refusal, RequestError
from edgecosine.http.replies import REQUEST_ID, error_reply

logger = logging.getLogger(__name__)

_INTERNAL = Refusal("the server failed at this request", code="internal_error", status=500)


def build_app(groups: Iterable[Sequence[BaseRoute]]) -> ASGIApp:
    """The application with the routes of all groups; earlier groups come first."""
    handlers = {RequestError: _refused, HTTPException: _not_found}
    routes = [route for group in groups for route in group]
    return _Guarded(Starlette(routes=routes, exception_handlers=handlers))


_UNSUPPORTED = {
    "responses": "not supported; use /v1/chat/completions",
    "embeddings": "not supported: models generate text only",
    "images": "not supported: models generate text only",
    "audio": "not supported: models generate text only",
}
"""OpenAI's endpoints that clients may expect, by the first part of their path."""


async def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_reply(error, http.scope["state"].get(REQUEST_ID, ""))


async def _not_found(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, instead = http.url.path, ""
    if path.startswith("/v1/"):
        instead = _UNSUPPORTED.get(path.split("/")[2], "")
    reason = instead or HTTPStatus(error.status_code).phrase.lower()
    message = f"{http.method} {path[:200]}: {reason}"
    reply = error_reply(Refusal(message, code="unknown_url", status=error.status_code))
    reply.headers.update(error.headers or {})  # the methods that are allowed
    return reply


class _Guarded:
    """Confines an unexpected exception to its request, and logs it on one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watched(message: object) -> None:
            nonlocal has_started
            has_started = True
            await send(message)  # type: ignore[arg-type]

        try:
            await self._app(scope, receive, watched)
        except (ClientDisconnect, ConnectionError):
            return
        except Exception as error:  # noqa: BLE001 -- only this request fails
            cause = f"{type(error).__name__}: {error}"[:300]
            logger.error("request failed: path=%.200s cause=%s", scope["path"], cause)  # noqa: TRY400
            if not has_started:
                await error_reply(_INTERNAL)(scope, receive, send)
