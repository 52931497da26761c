"""Reads request bodies, bounded in length and time."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request as HttpRequest

from edgecosine.errors import RequestError
from edgecosine.protocol.api.parse_request import too_large

MAX_BODY_BYTES: Final = 256 << 10
_TIMEOUT_S: Final = 30.0


async def read_body(http: HttpRequest) -> bytes:
    """The body of a request.

    Raises RequestError if it is too long or too slow.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async for part in http.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise too_large(len(body), MAX_BODY_BYTES).error()
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {_TIMEOUT_S:.0f} s", code="timeout", status=408
        ) from None
    return bytes(body)
