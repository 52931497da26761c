"""What the doors of a cluster ask: the one protocol between a gateway and the target's sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from edgecosine.protocol.api.request import Progress, Request


class Service(Protocol):
    """Answers requests."""

    @property
    def info(self) -> Mapping[str, Any]:
        """JSON values: `models` (names), `max_context` and `max_tokens` (tokens), and any more."""

    @property
    def max_sessions(self) -> int:
        """Sessions that may be at work at one time."""

    @property
    def has_broken(self) -> bool:
        """Whether what makes the answers failed at its requests, maybe because of one of them."""

    def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, deltas and one `Answer`. Closing the generator ends the session.

        One session makes one choice: `request.choice`, whatever `request.n`.

        Raises RequestError when the request cannot be served.
        """
