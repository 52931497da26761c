"""The cluster behind the HTTP frontend: a target's own gateway, or a client over MQTT."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from edgecosine.errors import Refusal
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import ChatMessage, Request
from edgecosine.protocol.api.result import Delta

_LOADING_RETRY_S: Final = 2.0
_NO_INFO: Final[Mapping[str, Any]] = {"models": [], "max_context": 0, "max_tokens": 1}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request was accepted: what goes wrong from now on is an error in its answer."""


Step = Accepted | Delta | FinalMessage
"""What a request yields: `Accepted` at most once, deltas if it streams, the final message last."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request by HTTP.

    is_named  whether the client chose the id, and so may repeat the request under it
    digest    of endpoint and body: distinguishes a repeated request from another one of its name
    """

    request: Request
    is_named: bool
    digest: bytes


class Tokenizer(Protocol):
    """The model's tokenizer."""

    @property
    def num_tokens(self) -> int:
        """Upper bound of the token ids."""

    @property
    def facts(self) -> Mapping[str, str | None]:
        """The special tokens and the chat template, by their names in transformers."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation.

        Raises RequestError.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""


class Backend(Protocol):
    """A cluster, as the HTTP frontend uses it."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The cluster's info, as on its topic: `models`, `max_context`, `max_tokens` and others."""

    @property
    def objection(self) -> Refusal | None:
        """Why new requests are refused now; None if they are taken."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is none."""

    def ask(self, call: Call) -> AsyncGenerator[Step, None]:
        """Yield the steps of a request; closing the generator early cancels it.

        Raises RequestError.
        """


LOADING = Refusal(
    "the node is starting: it loads its model, or waits for the members of its committee",
    code="loading",
    status=503,
    retry_after_s=_LOADING_RETRY_S,
)


class LateBackend:
    """A backend that `open` supplies later; until then every request is refused."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def open(self, backend: Backend) -> None:
        """Take requests from now on."""
        self._backend = backend

    @property
    def info(self) -> Mapping[str, Any]:
        """The cluster's info; without models until it is open."""
        return _NO_INFO if self._backend is None else self._backend.info

    @property
    def objection(self) -> Refusal | None:
        """Why new requests are refused now; None if they are taken."""
        return LOADING if self._backend is None else self._backend.objection

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None until it is open."""
        return None if self._backend is None else self._backend.tokenizer

    def ask(self, call: Call) -> AsyncGenerator[Step, None]:
        """Yield the steps of a request.

        Raises RequestError.
        """
        if self._backend is None:
            raise LOADING.error()
        return self._backend.ask(call)
