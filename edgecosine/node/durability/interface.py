"""What a reception tells a journal, and the journal of those who keep none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.request_record import ReplyAddress, RequestStatus

KEEP_ANSWERS_S: Final = 3600.0

Then = Callable[[bool], None]
"""Called in the loop, with whether the record was written."""


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """The end of a request, and when it may be forgotten, by the journal's `wall_s`."""

    key: str
    digest: bytes
    state: RequestStatus
    final: Outgoing
    kept_until: float
    is_delivered: bool = False
    """Whether the broker has it."""
    parts: tuple[Outgoing, ...] = ()
    """The whole text for readers of its stream, who may lack the end of it until then."""


class Journal(Protocol):
    """What a reception tells; nothing here waits or raises."""

    is_durable: bool

    def wall_s(self) -> float:
        """Seconds since 1970, by a clock that is not stepped where there is one."""

    def accept(self, ticket: ReplyAddress, request: Request, model: str, then: Then) -> None:
        """A request was let in; it is accepted once this is written."""

    def readdress(self, ticket: ReplyAddress) -> None:
        """The same request came again and is to be answered elsewhere."""

    def begin(self, key: str) -> None:
        """The request's sessions begin."""

    def leave(self, key: str) -> None:
        """The request's sessions end with this process, which ends in order."""

    def commit(self, key: str, choice: int, position: int, committed: Committed) -> None:
        """One choice has more tokens, behind `position` others."""

    def finish(self, kept: FinishedRecord) -> None:
        """The request has had its final message."""

    def deliver(self, key: str) -> None:
        """The broker has the final message."""

    def forget(self, key: str) -> None:
        """The request was not accepted after all, or another target answers it."""

    def then(self, call: Callable[[], None]) -> None:
        """Call when all that was told before is written, or cannot be."""

    def once_kept(self, call: Callable[[], None]) -> None:
        """Call when the ends that were told before are written, or were not in a long while."""

    async def settled(self) -> None:
        """Wait until all that was told is written, or cannot be."""

    async def run(self) -> None:
        """Write until cancelled."""


class NoJournal:
    """Forgets everything, at once."""

    is_durable = False

    def wall_s(self) -> float:
        return time.time()

    def accept(self, ticket: ReplyAddress, request: Request, model: str, then: Then) -> None:
        then(True)

    def readdress(self, ticket: ReplyAddress) -> None: ...

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
