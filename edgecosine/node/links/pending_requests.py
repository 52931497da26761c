"""Requests that await a reply on one link, matched by (request, round, ahead). A judgement and a
reveal of one round are never requested at once.

A reply completes at most one request. A reply without a pending request is counted and dropped.
"""

from __future__ import annotations

import asyncio
from functools import partial

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
_Key = tuple[str, int, bool]


class PendingRequests:
    """Futures by request; `num_late` counts replies whose request had been given up."""

    def __init__(self) -> None:
        self.num_late = 0
        self._waiting: dict[_Key, asyncio.Future[Reply]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, request: DraftRequest | JudgeRequest | Reveal) -> asyncio.Future[Reply]:
        """A future of the request's reply; cancelling it gives the request up.

        Raises LocalProtocolError when the same request is pending already.
        """
        key = _key(request)
        former = self._waiting.get(key)
        if former is not None and not former.done():
            raise LocalProtocolError(f"requested twice: request={key[0]} round={key[1]}")
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[key] = reply
        reply.add_done_callback(partial(self._forget, key))
        return reply

    def settle(self, message: Reply) -> None:
        """Complete the request that a reply belongs to."""
        reply = self._waiting.pop(_key(message), None)
        if reply is None or reply.done():
            self.num_late += 1
        else:
            reply.set_result(message)

    def fail(self, error: LinkLost) -> None:
        """Fail all pending requests."""
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(LinkLost(str(error)))

    def _forget(self, key: _Key, reply: asyncio.Future[Reply]) -> None:
        if self._waiting.get(key) is reply:
            del self._waiting[key]


def _key(message: DraftRequest | JudgeRequest | Reveal | Reply) -> _Key:
    return message.request_id, message.round, getattr(message, "is_ahead", False)
