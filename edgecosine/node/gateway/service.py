"""The interface between a gateway and the sessions of its target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from edgecosine.errors import RequestError
from edgecosine.http.backend import Tokenizer
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.result import Progress


class Service(Protocol):
    """Answers requests."""

    @property
    def info(self) -> Mapping[str, Any]:
        """JSON values: `models` (names), `max_context` and `max_tokens` (tokens), and others."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer."""

    @property
    def max_sessions(self) -> int:
        """Most sessions that may run at the same time."""

    @property
    def has_engine_failed(self) -> bool:
        """Whether the engine failed during a request, which may be the cause."""

    def check(self, request: Request) -> None:
        """Check all that the model asks of a request: policy, tokens, template, context length.

        Raises RequestError if the request can never be served.
        """

    def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, deltas and one `Answer`. Closing the generator ends the session.

        One session generates one choice, `request.choice`, whatever `request.n`.

        Raises RequestError if the request cannot be served.
        """


def validate(service: Service, record: RequestRecord) -> None:
    """Check that a service can ever serve a request; then the record is marked as valid.

    Raises RequestError.
    """
    if record.request.n > service.max_sessions:
        raise RequestError(
            f"n is {record.request.n}, but this cluster runs {service.max_sessions} at one time",
            code="invalid_value",
            parameter="n",
        )
    try:
        service.check(record.request)
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a tokenizer is no Exception
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    record.is_valid = True


def model_of(service: Service) -> str:
    """Return the name of the model that determines a service's answers; of a committee, its members
    and their weights."""
    info = service.info
    members = (f"{each['member']}={each['weight']:g}" for each in info.get("committee", ()))
    return "+".join(members) or ",".join(info["models"])
