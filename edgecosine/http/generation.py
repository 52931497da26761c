"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from edgecosine.errors import RequestError
from edgecosine.http.access import CLIENT
from edgecosine.http.backend import LOADING, Accepted, Backend, Call
from edgecosine.http.batch import ask_all, join_finals, split_prompts
from edgecosine.http.body import read_body
from edgecosine.http.replies import REQUEST_ID, EventReply, WholeReply
from edgecosine.protocol.api.answers import FinalMessage, render_error
from edgecosine.protocol.api.bodies import ChatBody, CompletionBody, field_names
from edgecosine.protocol.api.chunks import ChunkRenderer
from edgecosine.protocol.api.json_fields import Fields, read_object
from edgecosine.protocol.api.openai import RequestLimits, parse_request, stream_options
from edgecosine.protocol.api.request import RequestKind
from edgecosine.protocol.api.request_record import local_client
from edgecosine.protocol.api.result import Delta
from edgecosine.protocol.api.topics import is_identifier

_OF_MQTT: Final = ("id", "client", "reply_to")
"""Fields that name a request and its client over MQTT; over HTTP headers do."""
_MAX_NAMED: Final = 16
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.:-]")


def generation_routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes by which texts are generated."""

    async def chat(request: HttpRequest) -> ASGIApp:
        return await _answer(backend, "chat", request)

    async def completion(request: HttpRequest) -> ASGIApp:
        return await _answer(backend, "completion", request)

    return (
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
    )


async def _answer(backend: Backend, kind: RequestKind, http: HttpRequest) -> ASGIApp:
    name, is_named = _request_id(http)
    http.scope["state"][REQUEST_ID] = name
    payload = await read_body(http)
    body = read_object(payload)
    for field in _OF_MQTT:
        body.pop(field, None)
    if not backend.info["models"]:
        raise (backend.objection or LOADING).error()
    digest, client_id, limits = _digest(kind, payload), client_of(http), _limits(backend)
    calls = [
        Call(
            parse_request(
                kind, part, client_id=client_id, request_id=part_name, limits=limits,
                draw_seed=lambda: secrets.randbits(64),
            ),
            is_named,
            digest,
        )
        for part_name, part in split_prompts(name, body)
    ]  # fmt: skip
    headers = {"x-request-id": name, **_warning(kind, body)}
    usage = stream_options(Fields(body)).boolean("include_usage", default=False)
    if not calls[0].request.stream:
        return WholeReply(_whole(backend, name, calls), headers)
    model = calls[0].request.model or next(iter(backend.info["models"]), "")
    renderers = [
        ChunkRenderer(
            call.request,
            name,
            model,
            int(time.time()),
            usage,
            number * call.request.n,
            backend.info.get("identity"),
        )
        for number, call in enumerate(calls)
    ]

    def error_event(error: RequestError) -> bytes:
        return render_error(error, name)

    return EventReply(_events(backend, calls, renderers), error_event, headers)


async def _whole(backend: Backend, name: str, calls: Sequence[Call]) -> Mapping[str, object]:
    """The final message's body."""
    async with aclosing(ask_all(backend, calls)) as steps:
        finals = {number: step async for number, step in steps if isinstance(step, FinalMessage)}
    return join_finals(name, [finals[number].body for number in range(len(calls))])


async def _events(
    backend: Backend, calls: Sequence[Call], renderers: Sequence[ChunkRenderer]
) -> AsyncGenerator[bytes, None]:
    """The answer's chunks as JSON; an event without data means that the request is accepted."""
    finals: dict[int, FinalMessage] = {}
    has_begun = False
    async with aclosing(ask_all(backend, calls)) as steps:
        async for number, step in steps:
            if not has_begun:
                has_begun = True
                yield b""
                for renderer in renderers:
                    for chunk in renderer.first():
                        yield msgspec.json.encode(chunk)
            match step:
                case Delta():
                    for chunk in renderers[number].delta(step):
                        yield msgspec.json.encode(chunk)
                case FinalMessage():
                    finals[number] = step
                    for chunk in renderers[number].last(step):
                        yield msgspec.json.encode(chunk)
                case Accepted():
                    pass
    first = renderers[0]
    if first.usage:
        bodies = [finals[number].body for number in range(len(calls))]
        yield msgspec.json.encode(first.total(join_finals(first.request_id, bodies)))


def _warning(kind: RequestKind, body: Mapping[str, object]) -> Mapping[str, str]:
    """A header that names the fields without effect; empty if there are none."""
    known = field_names(ChatBody if kind == "chat" else CompletionBody)
    ignored = [name for name in body if name not in known and is_identifier(name)]
    if not ignored:
        return {}
    return {"warning": f'299 edgecosine "ignored: {", ".join(ignored[:_MAX_NAMED])}"'}


def client_of(http: HttpRequest) -> str:
    """The client id of a request: by its key, else by its address."""
    if (named := http.scope["state"].get(CLIENT)) is not None:
        return str(named)
    host = http.client.host if http.client else "unknown"
    return local_client(_UNSAFE.sub("-", host))


def _request_id(http: HttpRequest) -> tuple[str, bool]:
    """The request's id, and whether the client chose it."""
    given = http.headers.get("idempotency-key") or http.headers.get("x-request-id")
    if given is None:
        return secrets.token_hex(12), False
    if is_identifier(given):
        return given, True
    return hashlib.blake2b(given.encode(), digest_size=16).hexdigest(), True


def _limits(backend: Backend) -> RequestLimits:
    info = backend.info
    return RequestLimits(models=frozenset(info["models"]), max_tokens=info["max_tokens"])


def _digest(kind: RequestKind, payload: bytes) -> bytes:
    return hashlib.blake2b(b"http\0" + kind.encode() + b"\0" + payload, digest_size=16).digest()
