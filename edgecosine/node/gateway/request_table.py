"""Which requests are at work and which were answered: duplicates, monotonic states.

Pure: no await, and the clock is passed in. Bounded on both sides: requests at work by who is let in
(`balance/admission.py`), and by count and bytes the answers that are kept for those who ask twice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecosine.errors import RequestError
from edgecosine.node.runtime.failures import DUPLICATE
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.parse_request import ANONYMOUS
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import ReplyAddress, RequestStatus

MAX_KEPT_ANSWERS = 1024
MAX_KEPT_BYTES = 16 << 20

_ORDER: dict[RequestStatus, int] = {
    "accepted": 0,
    "queued": 1,
    "running": 2,
    "done": 3,
    "failed": 3,
    "cancelled": 3,
    "expired": 3,
}


@dataclass(slots=True, eq=False)
class RunningRequest:
    """One request at work."""

    ticket: ReplyAddress
    request: Request
    since: float
    state: RequestStatus = "accepted"
    is_cancelled: bool = False
    is_elsewhere: bool = False
    """Whether another target has taken it."""
    is_told: bool = False
    """Whether its final message was given out."""
    has_begun: bool = False
    """Whether one of its sessions has."""
    is_suspect: bool = False
    """Whether a former process may have ended at it."""
    said: Mapping[int, Committed] = field(default_factory=dict)
    """What a former process has committed, by choice."""
    texts: dict[int, str] = field(default_factory=dict)
    """What was passed on to a reader of the stream, by choice."""


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One request that has had its final message."""

    digest: bytes
    state: RequestStatus
    final: Outgoing
    until: float = math.inf
    """When it may be forgotten."""


class RequestTable:
    """All requests that this gateway knows of."""

    def __init__(self, *, max_sessions: int, keep_s: float = math.inf) -> None:
        self._max_sessions, self._keep_s = max_sessions, keep_s
        self._entries: dict[str, RunningRequest] = {}
        self._finished: OrderedDict[str, FinishedRequest] = OrderedDict()
        self._kept_bytes = 0

    def __repr__(self) -> str:
        return f"<RequestTable {len(self._entries)} at work, {len(self._finished)} answers kept>"

    @property
    def at_work(self) -> tuple[RunningRequest, ...]:
        """The requests that have not had their final message."""
        return tuple(self._entries.values())

    def admit(self, ticket: ReplyAddress, request: Request, now: float) -> RunningRequest:
        """Take a new request in; each of its choices needs a place.

        Raises RequestError when there can never be so many.
        """
        if request.n > self._max_sessions:
            raise RequestError(
                f"n is {request.n}, but this cluster runs {self._max_sessions} at one time",
                code="invalid_value",
                parameter="n",
            )
        entry = RunningRequest(ticket, request, since=now)
        self._entries[ticket.key] = entry
        return entry

    def restore(self, entry: RunningRequest) -> None:
        """Take in a request that was let in before."""
        self._entries[entry.ticket.key] = entry

    def drop(self, entry: RunningRequest) -> None:
        """Forget a request that was not let in after all."""
        del self._entries[entry.ticket.key]

    def at(self, key: str) -> RunningRequest | None:
        """The request at work of this name, if there is one."""
        return self._entries.get(key)

    def has_answered(self, key: str) -> bool:
        """Whether an answer is kept."""
        return key in self._finished

    def finished(self, key: str) -> FinishedRequest | None:
        """The answer that is kept of a request."""
        return self._finished.get(key)

    def forget(self, key: str) -> RunningRequest | None:
        """Forget a request that another target answers; the entry, if it was at work."""
        if (finished := self._finished.pop(key, None)) is not None:
            self._kept_bytes -= finished.final.num_bytes
        return self._entries.pop(key, None)

    def recall(
        self, ticket: ReplyAddress, now: float = 0.0
    ) -> RunningRequest | FinishedRequest | None:
        """What is known of a request that may have come before.

        Raises RequestError when the name stands for another request.
        """
        known = self._entries.get(ticket.key) or self._finished.get(ticket.key)
        if isinstance(known, FinishedRequest) and known.until < now:
            del self._finished[ticket.key]
            self._kept_bytes -= known.final.num_bytes
            known = None
        if known is None:
            return None
        digest = known.ticket.digest if isinstance(known, RunningRequest) else known.digest
        if digest != ticket.digest:
            raise DUPLICATE.error()
        if isinstance(known, FinishedRequest):
            self._finished.move_to_end(ticket.key)
        return known

    def find(self, request_id: str, client_id: str | None) -> RunningRequest | None:
        """The request at work that somebody wants to end.

        An asker that does not name itself means the only request of that name, or the anonymous one
        among several.
        """
        if client_id is not None:
            return self._entries.get(f"{client_id}/{request_id}")
        named = [entry for entry in self._entries.values() if entry.ticket.request_id == request_id]
        if len(named) == 1:
            return named[0]
        return self._entries.get(f"{ANONYMOUS}/{request_id}")

    def advance(self, entry: RunningRequest, state: RequestStatus) -> bool:
        """Move an entry to a later state; False when it is there or further already."""
        if _ORDER[state] <= _ORDER[entry.state]:
            return False
        entry.state = state
        return True

    def finish(
        self, entry: RunningRequest, state: RequestStatus, final: Outgoing, now: float
    ) -> None:
        """The entry has had its final message, which is kept for those who ask again."""
        self.advance(entry, state)
        key = entry.ticket.key
        self._entries.pop(key, None)
        self.keep(key, FinishedRequest(entry.ticket.digest, state, final, now + self._keep_s))

    def keep(self, key: str, finished: FinishedRequest) -> None:
        """Keep an answer for those who ask again."""
        if (former := self._finished.pop(key, None)) is not None:
            self._kept_bytes -= former.final.num_bytes
        self._finished[key] = finished
        self._kept_bytes += finished.final.num_bytes
        while len(self._finished) > MAX_KEPT_ANSWERS or self._kept_bytes > MAX_KEPT_BYTES:
            _, oldest = self._finished.popitem(last=False)
            self._kept_bytes -= oldest.final.num_bytes
