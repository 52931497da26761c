"""One record for a request, from parsing to its final message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from edgecosine.errors import Refusal
from edgecosine.protocol.api.channels import Channel
from edgecosine.protocol.api.origins import Origins
from edgecosine.protocol.api.request import Committed, Request, RequestKind
from edgecosine.protocol.api.result import Usage

RequestStatus = Literal["accepted", "queued", "running", "done", "failed", "cancelled", "expired"]

MAX_CLIENT_ID: Final = 64

_ORDER: Final[dict[RequestStatus, int]] = {
    "accepted": 0,
    "queued": 1,
    "running": 2,
    "done": 3,
    "failed": 3,
    "cancelled": 3,
    "expired": 3,
}


_LOCAL: Final = "http:"
"""Begins the ids of clients that ask over HTTP; no client of MQTT can have such an id."""


def local_client(name: str) -> str:
    """The client id of a client that asks over HTTP."""
    return f"{_LOCAL}{name}"[:MAX_CLIENT_ID]


def is_local(key: str) -> bool:
    """Whether a request, by its key, came over HTTP: it concerns the target that received it
    alone, since its reply goes back on the connection of the request."""
    return key.startswith(_LOCAL)


TextPlace = tuple[int, Channel]
"""The choice and the channel of a text."""


@dataclass(frozen=True, slots=True)
class RequestTicket:
    """What identifies a request: its name and client, where its replies go, and its digest."""

    client_id: str
    request_id: str
    kind: RequestKind
    reply_topic: str
    correlation: bytes | None = None
    wants_stream: bool = False
    digest: bytes = b""
    """Digest of kind and body: distinguishes a repeated request from another one of its name."""
    is_named: bool = True
    """Whether the client chose the id, so that every target calls the request the same."""

    @property
    def key(self) -> str:
        """The name of the request in the cluster."""
        return f"{self.client_id}/{self.request_id}"

    @property
    def is_local(self) -> bool:
        """Whether the request came over HTTP."""
        return is_local(self.client_id)


@dataclass(slots=True, eq=False)
class RequestRecord:
    """A request and its progress. Times are in seconds."""

    ticket: RequestTicket
    request: Request
    age_s: float = 0.0
    """Time from the first acceptance to the creation of this record."""
    resumed: Mapping[int, Committed] = field(default_factory=dict)
    """Tokens that a former process committed, by choice."""
    num_crashes: int = 0
    """Processes that ended while the request ran, since its last new token."""
    fault: Refusal | None = None
    """Why a recovered request cannot continue."""
    state: RequestStatus = "accepted"
    accepted_at: float = 0.0
    """Moment of the first acceptance, by the event loop's clock."""
    is_valid: bool = False
    """Whether the service has checked the request."""
    is_cancelled: bool = False
    is_elsewhere: bool = False
    """Whether another target owns the request."""
    is_final_sent: bool = False
    has_started: bool = False
    """Whether a session of it started in this process."""
    texts: dict[TextPlace, str] = field(default_factory=dict)
    """Text that was sent to the reader of its stream."""
    origins: dict[TextPlace, Origins] = field(default_factory=dict)
    """Sources of this text, by choice."""
    num_prompt_tokens: int = 0
    num_tokens: dict[int, int] = field(default_factory=dict)
    """Committed tokens, by choice."""

    @property
    def key(self) -> str:
        """The name of the request in the cluster."""
        return self.ticket.key

    @property
    def is_suspect(self) -> bool:
        """Whether a former process may have crashed because of this request."""
        return self.num_crashes > 0 and self.fault is None

    @property
    def usage(self) -> Usage | None:
        """The tokens so far, where the request counts them in its stream."""
        if not self.request.counts_parts:
            return None
        return Usage(self.num_prompt_tokens, sum(self.num_tokens.values()))

    @property
    def deadline_at(self) -> float:
        """Moment after which the answer is worthless, by the event loop's clock; maybe infinite."""
        return self.accepted_at + self.request.deadline_s

    def advance(self, state: RequestStatus) -> bool:
        """Move to a later state. Returns False if the record has reached it already."""
        if _ORDER[state] <= _ORDER[self.state]:
            return False
        self.state = state
        return True
