"""HTTP responses: JSON bodies, errors in OpenAI's format, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgecosine.errors import Refusal, RequestError, root_of
from edgecosine.http.server import ABORT
from edgecosine.protocol.api.answers import render_error

Result = TypeVar("Result")

PING_S: Final = 15.0
"""A stream without text gets a comment so often, which keeps proxies from closing it."""
SEND_TIMEOUT_S: Final = 60.0
"""A client that takes no byte for this long is disconnected."""
REQUEST_ID: Final = "request_id"
"""The key in a request's state of its name, for its error."""
_JSON: Final = "application/json"
_EVENT_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def json_reply(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(body), status, headers, media_type=_JSON)


def error_reply(error: RequestError | Refusal, request_id: str = "") -> Response:
    """OpenAI's error object with its HTTP status, and whether a repetition may help."""
    retry_s = error.retry_after_s
    headers = {"x-should-retry": "true" if retry_s is not None else "false"}
    if retry_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_s)))
    if request_id:
        headers["x-request-id"] = request_id
    return Response(render_error(error, request_id), error.status, headers, media_type=_JSON)


class WholeReply:
    """Sends one JSON body when `work` has made it; the work ends if the client disconnects."""

    def __init__(self, work: Coroutine[Any, Any, object], headers: Mapping[str, str]) -> None:
        self._work, self._headers = work, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _unless_gone(receive, self._work)
        if body is not None:
            await json_reply(body, headers=self._headers)(scope, receive, send)


class EventReply:
    """Sends events as they come, then `[DONE]`; they end if the client disconnects.

    A RequestError before the first event is raised; a later one becomes the last event. `errors`
    renders it.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        errors: Callable[[RequestError], bytes],
        headers: Mapping[str, str],
    ) -> None:
        self._events, self._errors, self._headers = events, errors, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _unless_gone(receive, self._send_all(_EventWriter(send, self._headers)))
        except ConnectionAbortedError:
            scope["state"][ABORT]()
            raise

    async def _send_all(self, writer: _EventWriter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                pings = group.create_task(writer.ping(), name="http.ping")
                await self._send_events(writer)
                pings.cancel()
            await writer.end()
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None

    async def _send_events(self, writer: _EventWriter) -> None:
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await writer.write(event)
            await writer.write(b"[DONE]")
        except RequestError as error:
            if not writer.has_started:
                raise
            await writer.write(self._errors(error))


class _EventWriter:
    """Writes events to one client; the headers go out before the first."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self.has_started = send, False
        more = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._headers = [*_EVENT_HEADERS, *more]
        self._written_at = asyncio.get_running_loop().time()

    async def write(self, data: bytes) -> None:
        """Send an event; without data, the headers alone."""
        await self._write(b"data: " + data + b"\n\n" if data else b"")

    async def ping(self) -> NoReturn:
        """Send comments while there are no events."""
        while True:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(self._written_at + PING_S - now)
            if asyncio.get_running_loop().time() >= self._written_at + PING_S:
                await self._write(b": ping\n\n")

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, body: bytes) -> None:
        self._written_at = asyncio.get_running_loop().time()
        if not self.has_started:
            self.has_started = True
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise ConnectionAbortedError("the client takes no data") from None


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`; None if the client disconnects, which cancels the work."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name="http.request")
            watch = group.create_task(_cancel_when_gone(receive, task), name="http.watch")
            task.add_done_callback(lambda _: watch.cancel())
    except BaseExceptionGroup as failures:
        raise root_of(failures) from None
    return None if task.cancelled() else task.result()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
