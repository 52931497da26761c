"""The interface between a gateway and the sessions of its target."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from edgecosine.protocol.api.request import Progress, Request


class Service(Protocol):
    """Answers requests."""

    @property
    def info(self) -> Mapping[str, Any]:
        """JSON values: `models` (names), `max_context` and `max_tokens` (tokens), and others."""

    @property
    def max_sessions(self) -> int:
        """Most sessions that may run at the same time."""

    @property
    def has_broken(self) -> bool:
        """Whether the engine failed during a request, maybe because of it."""

    def check(self, request: Request) -> None:
        """Check all that the model asks of a request: policy, tokens, template, context length.

        Raises RequestError if the request can never be served.
        """

    def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, deltas and one `Answer`. Closing the generator ends the session.

        One session generates one choice, `request.choice`, whatever `request.n`.

        Raises RequestError if the request cannot be served.
        """


def model_of(service: Service) -> str:
    """Return the name of the model that determines a service's answers."""
    return ",".join(service.info["models"])
