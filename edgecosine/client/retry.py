"""Whether and when a refused request is put again: as the refusal says, while patience lasts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import Request

RETRY_PATIENCE_S = 30.0
"""How long a request is put again and again to a cluster that says when to come again."""
_CROWD = 0.25
"""Of a pause, at most, is added by chance, so that the refused do not come back in one moment."""
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
        """The request as it is to be put now: its deadline has come nearer."""
        left_s = self._asked.deadline_s - (self._clock() - self._begun)
        return replace(self._asked, deadline_s=left_s)

    def pause_s(self, refusal: RequestError) -> float:
        """Seconds until the next attempt.

        Raises the refusal when there is no use in another one, or no time.
        """
        self._is_draining |= refusal.code == "draining"
        if refusal.retry_after_s is not None:
            pause_s = refusal.retry_after_s * (1 + _CROWD * random.random())
        elif self._is_draining and refusal.code == "gateway_offline":
            pause_s = _RETURN_S  # what was draining comes back
        else:
            raise refusal
        if self._clock() - self._begun + pause_s > self._patience_s:
            raise refusal
        return pause_s
