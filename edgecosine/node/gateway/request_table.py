"""The requests that a gateway knows: active ones, and finals that are kept for repeated requests.

Pure: the time is passed in. Admission control bounds the active requests
(`balance/admission.py`), and count and bytes bound the kept finals.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from edgecosine.node.durability.interface import MAX_KEPT_ANSWERS, MAX_KEPT_BYTES
from edgecosine.node.runtime.failures import DUPLICATE
from edgecosine.protocol.api.parse_request import ANONYMOUS
from edgecosine.protocol.api.replies import FinalReply
from edgecosine.protocol.api.request_record import RequestRecord, RequestStatus, RequestTicket


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """The final of a request."""

    digest: bytes
    state: RequestStatus
    final: FinalReply
    until: float = math.inf
    """When it may be forgotten."""


class RequestTable:
    """All requests that this gateway knows, by key. Finals are kept for `keep_s` seconds."""

    def __init__(self, *, keep_s: float = math.inf) -> None:
        self._keep_s = keep_s
        self._active: dict[str, RequestRecord] = {}
        self._finished: OrderedDict[str, FinishedRequest] = OrderedDict()
        self._kept_bytes = 0

    def __repr__(self) -> str:
        return f"<RequestTable {len(self._active)} active, {len(self._finished)} finals kept>"

    @property
    def active(self) -> tuple[RequestRecord, ...]:
        """The requests without a final."""
        return tuple(self._active.values())

    def add(self, record: RequestRecord, now: float) -> None:
        """Add an accepted request."""
        record.accepted_at = now - record.age_s
        self._active[record.key] = record

    def get(self, key: str) -> RequestRecord | None:
        """Return the active request with this key."""
        return self._active.get(key)

    def has_finished(self, key: str) -> bool:
        """Whether the final of a request is kept."""
        return key in self._finished

    def finished(self, key: str) -> FinishedRequest | None:
        """Return the final that is kept of a request."""
        return self._finished.get(key)

    def forget(self, key: str) -> RequestRecord | None:
        """Forget a request that was refused or that another target owns; return it if active."""
        self._drop_finished(key)
        return self._active.pop(key, None)

    def recall(
        self, ticket: RequestTicket, now: float = 0.0
    ) -> RequestRecord | FinishedRequest | None:
        """Return what is known of a request; None if it is new.

        Raises RequestError if the key belongs to another request.
        """
        key = ticket.key
        known = self._active.get(key) or self._finished.get(key)
        if isinstance(known, FinishedRequest) and known.until < now:
            self._drop_finished(key)
            known = None
        if known is None:
            return None
        digest = known.ticket.digest if isinstance(known, RequestRecord) else known.digest
        if digest != ticket.digest:
            raise DUPLICATE.error()
        if isinstance(known, FinishedRequest):
            self._finished.move_to_end(key)
        return known

    def find(self, request_id: str, client_id: str | None) -> RequestRecord | None:
        """Return the active request that a cancel message names, if any.

        Without a client id it is the only request with that id, or the anonymous one of several.
        """
        if client_id is not None:
            return self._active.get(f"{client_id}/{request_id}")
        named = [each for each in self._active.values() if each.ticket.request_id == request_id]
        if len(named) == 1:
            return named[0]
        return self._active.get(f"{ANONYMOUS}/{request_id}")

    def finish(
        self, record: RequestRecord, state: RequestStatus, final: FinalReply, now: float
    ) -> None:
        """End a request, and keep its final."""
        record.advance(state)
        self._active.pop(record.key, None)
        until = now + self._keep_s
        self.keep(record.key, FinishedRequest(record.ticket.digest, state, final, until))

    def keep(self, key: str, finished: FinishedRequest) -> None:
        """Keep a final for repeated requests."""
        self._drop_finished(key)
        self._finished[key] = finished
        self._kept_bytes += finished.final.num_bytes
        while len(self._finished) > MAX_KEPT_ANSWERS or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop_finished(next(iter(self._finished)))

    def _drop_finished(self, key: str) -> None:
        if (finished := self._finished.pop(key, None)) is not None:
            self._kept_bytes -= finished.final.num_bytes
