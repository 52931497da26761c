"""The queue that the targets of a cluster share, as the gateway uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket


class RequestQueue(Protocol):
    """Decides which requests this target serves, and when its finals may be sent."""

    @property
    def has_ready_peer(self) -> bool:
        """Whether another target takes new requests."""

    def has_other(self, ticket: RequestTicket) -> bool:
        """Whether another request has this key."""

    def is_chosen(self, ticket: RequestTicket) -> bool:
        """Whether this target is the one to claim a new request."""

    def claim(self, record: RequestRecord, on_taken: Callable[[], None]) -> bool:
        """Whether a new request is ours at once.

        Otherwise it is started if it becomes ours. `on_taken` is called when any target has it.
        """

    def resume(self, record: RequestRecord) -> None:
        """Claim a request of a former process; it is started when it is ours."""

    def repeat(self, ticket: RequestTicket) -> None:
        """Announce to the other targets that a repeated request was finished here."""

    def withdraw(self, ticket: RequestTicket) -> None:
        """Give up a request that was refused here."""

    def expect_delivery(self, key: str) -> None:
        """Register a final of a former process that may be undelivered."""

    def when_owned(self, key: str, end: RequestEnd, send: Callable[[], None]) -> None:
        """Call `send` once no other target can have sent another final, or can send one later."""

    def is_held(self, key: str) -> bool:
        """Whether a final waits for `when_owned`."""

    def finish(self, key: str) -> None:
        """Record that the final of a request was delivered."""
