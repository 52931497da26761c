"""Requests that wait for an answer on one link, matched by (request, round, ahead).

An answer settles at most one ask. Whatever nobody waits for any more is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from edgecosine.errors import LinkLost, LocalProtocolError
from edgecosine.protocol.wire.messages import Draft, DraftRequest, OutOfStep

DraftReply = Draft | OutOfStep


class PendingRequests:
    """The waiting askers; `num_late` counts answers that came after their asker had left."""

    def __init__(self) -> None:
        self.num_late = 0
        self._waiting: dict[tuple[str, int, bool], asyncio.Future[DraftReply]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def waiting(self, request: DraftRequest) -> Iterator[asyncio.Future[DraftReply]]:
        """A future for the request's answer, forgotten when the block is left.

        Raises LocalProtocolError when the same request waits already.
        """
        key = (request.request_id, request.round, request.is_ahead)
        if key in self._waiting:
            raise LocalProtocolError(f"asked twice: request={key[0]} round={key[1]}")
        answer: asyncio.Future[DraftReply] = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        try:
            yield answer
        finally:
            del self._waiting[key]

    def settle(self, message: DraftReply) -> None:
        """Hand an answer to its asker."""
        answer = self._waiting.get((message.request_id, message.round, message.is_ahead))
        if answer is None or answer.done():
            self.num_late += 1
        else:
            answer.set_result(message)

    def fail(self, error: LinkLost) -> None:
        """No answer will come any more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkLost(str(error)))
