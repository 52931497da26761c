"""The journal as the gateway uses it, and the journal of a node that keeps none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import FinalReply
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import RequestStatus, RequestTicket

KEEP_ANSWERS_S: Final = 3600.0
MAX_KEPT_ANSWERS: Final = 1024
MAX_KEPT_BYTES: Final = 16 << 20

OnWritten = Callable[[bool], None]
"""Called in the event loop with whether the record was written."""


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """The end of a request. `kept_until` is a moment of the journal's `wall_s`."""

    key: str
    digest: bytes
    state: RequestStatus
    final: FinalReply
    kept_until: float
    is_delivered: bool = False
    parts: tuple[Outgoing, ...] = ()
    """The whole stream, kept until delivery because its readers may lack the end of it."""


class Journal(Protocol):
    """Records requests, tokens and finals. No method but `settled` and `run` waits or raises."""

    is_durable: bool

    def wall_s(self) -> float:
        """Return seconds since 1970, by a clock that is not stepped if there is one."""

    def accept(
        self, ticket: RequestTicket, request: Request, model: str, on_written: OnWritten
    ) -> None:
        """Record a new request, which is accepted once this is written."""

    def readdress(self, ticket: RequestTicket) -> None:
        """Record a new reply address of a repeated request."""

    def begin(self, key: str) -> None:
        """Record that a request's sessions start."""

    def leave(self, key: str) -> None:
        """Record that a request's sessions end because this process ends in order."""

    def commit(self, key: str, choice: int, position: int, committed: Committed) -> None:
        """Record new tokens of a choice, which follow `position` earlier ones."""

    def finish(self, kept: FinishedRecord) -> None:
        """Record the end of a request."""

    def deliver(self, key: str) -> None:
        """Record that the final of a request was delivered."""

    def forget(self, key: str) -> None:
        """Remove a request that was refused after all, or that another target owns."""

    def then(self, call: Callable[[], None]) -> None:
        """Call once all earlier records are written or have failed."""

    def once_kept(self, call: Callable[[], None]) -> None:
        """Call once all earlier ends of requests are written, or have failed for a long time."""

    async def settled(self) -> None:
        """Wait until all earlier records are written or have failed."""

    async def run(self) -> None:
        """Write until cancelled."""


class NoJournal:
    """A journal that records nothing and reports success at once."""

    is_durable = False

    def wall_s(self) -> float:
        return time.time()

    def accept(
        self, ticket: RequestTicket, request: Request, model: str, on_written: OnWritten
    ) -> None:
        on_written(True)

    def readdress(self, ticket: RequestTicket) -> None: ...

    def begin(self, key: str) -> None: ...

    def leave(self, key: str) -> None: ...

    def commit(self, key: str, choice: int, position: int, committed: Committed) -> None: ...

    def finish(self, kept: FinishedRecord) -> None: ...

    def deliver(self, key: str) -> None: ...

    def forget(self, key: str) -> None: ...

    def then(self, call: Callable[[], None]) -> None:
        call()

    def once_kept(self, call: Callable[[], None]) -> None:
        call()

    async def settled(self) -> None: ...

    async def run(self) -> None: ...
