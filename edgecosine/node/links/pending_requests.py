"""Requests that await a reply on one link, matched by (request, round, ahead). A judgement and a
reveal of one round are never requested at once.

A reply completes at most one request. A reply without a pending request is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from edgecosine.errors import LinkLost, LocalProtocolError
from edgecosine.protocol.wire.messages import (
    Draft,
    DraftRequest,
    Judgement,
    JudgeRequest,
    OutOfStep,
    Reveal,
)

Reply = Draft | Judgement | OutOfStep


class PendingRequests:
    """Futures by request; `num_late` counts replies whose request had been given up."""

    def __init__(self) -> None:
        self.num_late = 0
        self._waiting: dict[tuple[str, int, bool], asyncio.Future[Reply]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def waiting(
        self, request: DraftRequest | JudgeRequest | Reveal
    ) -> Iterator[asyncio.Future[Reply]]:
        """Context with a future for the request's reply.

        Raises LocalProtocolError when the same request is pending already.
        """
        key = (request.request_id, request.round, _is_ahead(request))
        if key in self._waiting:
            raise LocalProtocolError(f"requested twice: request={key[0]} round={key[1]}")
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[key] = reply
        try:
            yield reply
        finally:
            del self._waiting[key]

    def settle(self, message: Reply) -> None:
        """Complete the request that a reply belongs to."""
        reply = self._waiting.get((message.request_id, message.round, _is_ahead(message)))
        if reply is None or reply.done():
            self.num_late += 1
        else:
            reply.set_result(message)

    def fail(self, error: LinkLost) -> None:
        """Fail all pending requests."""
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(LinkLost(str(error)))


def _is_ahead(message: DraftRequest | JudgeRequest | Reveal | Reply) -> bool:
    return isinstance(message, DraftRequest | Draft | OutOfStep) and message.is_ahead
