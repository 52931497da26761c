"""Access to the HTTP frontend: for clients with a key, and for pages of known origins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from edgecosine.errors import Refusal
from edgecosine.http.replies import error_reply
from edgecosine.protocol.api.request_record import local_client

CLIENT: Final = "client_id"
"""The key in a request's state of its client id."""
PUBLIC: Final = frozenset({"/", "/health", "/ready", "/version", "/openapi.json"})
"""Paths that need no key: they show nothing that a client has sent."""
_ANY: Final = "*"
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_NO_KEY: Final = Refusal(
    "this server needs a key: `edgecosine key create NAME` makes one, and clients send it as "
    "`Authorization: Bearer KEY`",
    code="invalid_api_key",
    status=401,
)
_FOREIGN: Final = Refusal(
    "a page of another origin asks, or a proxy under another name; --http-cors ORIGIN allows it",
    code="origin_refused",
    status=403,
)


class Keys(Protocol):
    """The keys that are valid now."""

    def __len__(self) -> int: ...

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if it is not valid."""


class NoKeys:
    """The absence of keys: requests need none."""

    def __len__(self) -> int:
        return 0

    def name_of(self, key: str) -> str | None:
        return None


class AccessControl:
    """Refuses requests without a key if there are keys, and those of pages of other origins.

    `origins` may be `*`; `is_local`: the server listens on a loopback address.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, *, origins: Collection[str], is_local: bool
    ) -> None:
        self._keys, self._origins, self._is_local = keys, frozenset(origins), is_local
        self._hosts = _LOOPBACK_HOSTS.union(urlsplit(origin).hostname for origin in origins)
        self._app: ASGIApp = app
        if origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=[*origins],
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after", "warning"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._objection(scope, headers)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_reply(refusal)(scope, receive, send)

    def _objection(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Why a request is refused; also sets its client id where a key names it."""
        if self._is_foreign(headers):
            return _FOREIGN
        if not len(self._keys) or _is_public(scope["path"]) or scope["method"] == "OPTIONS":
            return None
        name = self._keys.name_of(_key_of(headers))
        if name is None:
            return _NO_KEY
        scope["state"][CLIENT] = local_client(name)
        return None

    def _is_foreign(self, headers: Mapping[str, str]) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if _ANY in self._origins:
            return False
        if origin is not None and origin not in self._origins and _netloc(origin) != host:
            return True
        # Without keys, a page could send requests through a name of its own that points here.
        return self._is_local and not len(self._keys) and _host(host) not in self._hosts


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith("/page/")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _key_of(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
