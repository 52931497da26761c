"""Whether and when a refused request is sent again: as its refusal permits, for a bounded time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import Request

RETRY_PATIENCE_S = 30.0
"""Seconds for which a request is retried where refusals name a time to retry."""
_JITTER = 0.25
"""Largest share that is added to a pause at random, so that clients do not retry in step."""
_RETURN_S = 1.0


class RetryPolicy:
    """One request's attempts, from now on."""

    def __init__(self, request: Request, patience_s: float) -> None:
        self._asked = request
        self._patience_s = min(patience_s, request.deadline_s)
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._is_draining = False

    @property
    def request(self) -> Request:
        """The request to send now, with the rest of its deadline."""
        left_s = self._asked.deadline_s - (self._clock() - self._begun)
        return replace(self._asked, deadline_s=left_s)

    def pause_s(self, refusal: RequestError) -> float:
        """Seconds until the next attempt.

        Raises the refusal when a retry is useless or the time is over.
        """
        self._is_draining |= refusal.code == "draining"
        if refusal.retry_after_s is not None:
            pause_s = refusal.retry_after_s * (1 + _JITTER * random.random())
        elif self._is_draining and refusal.code == "gateway_offline":
            pause_s = _RETURN_S  # a draining gateway restarts
        else:
            raise refusal
        if self._clock() - self._begun + pause_s > self._patience_s:
            raise refusal
        return pause_s
