"""The queue of requests that came over HTTP, which their target always serves itself.

The client of such a request waits on a connection to this target, so another target could not
reply to it. The client repeats the request at another target if this one fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket, is_local


class LocalQueue:
    """The queue of a target without peers: every request is its own."""

    has_ready_peer = False

    def __init__(self, start: Callable[[Claim], None]) -> None:
        self._start = start

    def has_other(self, ticket: RequestTicket) -> bool:
        return False

    def is_chosen(self, ticket: RequestTicket) -> bool:
        return True

    def claim(self, record: RequestRecord, on_taken: Callable[[], None]) -> bool:
        return True

    def resume(self, record: RequestRecord) -> None:
        self._start(Claim("", "", record.ticket, record.request, time.time() - record.age_s))

    def repeat(self, ticket: RequestTicket) -> None: ...

    def withdraw(self, ticket: RequestTicket) -> None: ...

    def expect_delivery(self, key: str) -> None: ...

    def when_owned(self, key: str, end: RequestEnd, send: Callable[[], None]) -> None:
        send()

    def is_held(self, key: str) -> bool:
        return False

    def finish(self, key: str) -> None: ...


class RoutedQueue:
    """Passes each request to the `shared` queue, or to the `local` one if it came over HTTP."""

    def __init__(self, shared: RequestQueue, local: RequestQueue) -> None:
        self._shared, self._local = shared, local

    @property
    def has_ready_peer(self) -> bool:
        """Whether another target takes new requests."""
        return self._shared.has_ready_peer

    def _of(self, key: str) -> RequestQueue:
        return self._local if is_local(key) else self._shared

    def has_other(self, ticket: RequestTicket) -> bool:
        return self._of(ticket.key).has_other(ticket)

    def is_chosen(self, ticket: RequestTicket) -> bool:
        return self._of(ticket.key).is_chosen(ticket)

    def claim(self, record: RequestRecord, on_taken: Callable[[], None]) -> bool:
        return self._of(record.key).claim(record, on_taken)

    def resume(self, record: RequestRecord) -> None:
        self._of(record.key).resume(record)

    def repeat(self, ticket: RequestTicket) -> None:
        self._of(ticket.key).repeat(ticket)

    def withdraw(self, ticket: RequestTicket) -> None:
        self._of(ticket.key).withdraw(ticket)

    def expect_delivery(self, key: str) -> None:
        self._of(key).expect_delivery(key)

    def when_owned(self, key: str, end: RequestEnd, send: Callable[[], None]) -> None:
        self._of(key).when_owned(key, end, send)

    def is_held(self, key: str) -> bool:
        return self._of(key).is_held(key)

    def finish(self, key: str) -> None:
        self._of(key).finish(key)
