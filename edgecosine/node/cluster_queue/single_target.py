"""Who answers the requests that fall to a target, and how they fall where it has no company."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import ReplyAddress


class RequestStarter(Protocol):
    """What the answering side of a target does as it is told."""

    def start(self, claim: Claim) -> None:
        """The request is ours."""

    def give_up(self, key: str) -> None:
        """The request is another target's."""

    def knows(self, key: str) -> bool:
        """Whether the request was answered here."""


class SingleTarget:
    """A target that never has company."""

    has_stand_in = False

    def __init__(self, wall_clock_s: Callable[[], float] = time.time) -> None:
        self._wall_clock_s = wall_clock_s
        self._desk: RequestStarter | None = None

    def serve(self, desk: RequestStarter) -> None:
        self._desk = desk

    def hear(self, ticket: ReplyAddress, request: Request, taken: Callable[[], None]) -> None:
        self.resume(ticket, request, 0.0)
        taken()

    def resume(self, ticket: ReplyAddress, request: Request, age_s: float) -> None:
        assert self._desk is not None
        self._desk.start(Claim("", "", ticket, request, self._wall_clock_s() - age_s))

    def repeat(self, ticket: ReplyAddress) -> None: ...

    def withdraw(self, ticket: ReplyAddress) -> None: ...

    def owe(self, key: str) -> None: ...

    def give(self, key: str, send: Callable[[], None]) -> None:
        send()

    def is_held(self, key: str) -> bool:
        return False

    def delivered(self, key: str) -> None: ...
