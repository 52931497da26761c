"""Finals of requests that were never accepted: bounded, and logged at a bounded rate."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from edgecosine.counters import Counters
from edgecosine.errors import Refusal, RequestError
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.runtime.clock import loop_time
from edgecosine.node.runtime.failures import log_failure
from edgecosine.protocol.api.replies import FinalReply, error_reply
from edgecosine.protocol.api.request_record import RequestTicket

logger = logging.getLogger(__name__)

MAX_REFUSALS: Final = 2048
MAX_REFUSALS_PER_CLIENT: Final = 512
"""Undelivered refusals. Beyond these limits a refusal is counted and not sent, since each costs as
much as an answer and would delay answers."""


class Refusals:
    """Sends refusals, and counts those that are undelivered."""

    def __init__(self, publisher: ReplyPublisher, counters: Counters) -> None:
        self._publisher, self._counters = publisher, counters
        self._log_throttle = LogThrottle()
        self._undelivered: dict[FinalReply, str] = {}
        """Refusals and their clients."""
        self._num_undelivered: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Refusals [{len(self._undelivered)} undelivered]>"

    def send(
        self, ticket: RequestTicket, error: RequestError | Refusal, cause: Exception | None = None
    ) -> None:
        """Refuse a request. `cause` is an unexpected exception, for the log."""
        if cause is not None:
            log_failure(ticket.key, cause)
        self._counters.count("refused", error.code)
        if self._log_throttle.is_due(error.code, loop_time()):
            logger.info("request refused: request=%s code=%s", ticket.key, error.code)
        num_of_client = self._num_undelivered.get(ticket.client_id, 0)
        if num_of_client >= MAX_REFUSALS_PER_CLIENT or len(self._undelivered) >= MAX_REFUSALS:
            self._counters.count("unsaid_refusals")
            return
        final = error_reply(ticket, error)
        if final not in self._undelivered:
            self._undelivered[final] = ticket.client_id
            self._num_undelivered[ticket.client_id] += 1
        self._publisher.send_refusal(final)

    def delivered(self, final: FinalReply) -> None:
        """Record that a final was delivered; other finals than refusals are ignored."""
        if (client_id := self._undelivered.pop(final, None)) is not None:
            self._num_undelivered[client_id] -= 1
            if not self._num_undelivered[client_id]:
                del self._num_undelivered[client_id]
