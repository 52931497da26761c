"""Continues the requests that a former process, or another target, left.

It knows no transport: replies go to a `ReplyPublisher`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from edgecosine.counters import Counters
from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.node.durability.interface import FinishedRecord, Journal
from edgecosine.node.durability.recovery import DEADLY, RecoveredState
from edgecosine.node.gateway.reply_publisher import ReplyPublisher
from edgecosine.node.gateway.request_runner import RequestRunner
from edgecosine.node.gateway.request_table import FinishedRequest, RequestTable
from edgecosine.node.gateway.service import Service, model_of
from edgecosine.node.runtime.clock import loop_time
from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket

logger = logging.getLogger(__name__)

MAX_TAKEN_OVER: Final = 3
"""A request that crashed more targets than this is not tried again."""


class FormerRequests:
    """Requests that were accepted before, by a former process of this target or by another one.

    `guarded` gives a context that confines an exception to the request of a ticket.
    """

    def __init__(
        self,
        service: Service,
        *,
        table: RequestTable,
        runner: RequestRunner,
        publisher: ReplyPublisher,
        journal: Journal,
        queue: RequestQueue,
        keep_answers_s: float,
        counters: Counters,
        guarded: Callable[[RequestTicket], AbstractContextManager[None]],
    ) -> None:
        self._service, self._table, self._runner = service, table, runner
        self._publisher, self._journal, self._queue = publisher, journal, queue
        self._keep_answers_s, self._counters, self._guarded = keep_answers_s, counters, guarded
        self._recovered: dict[str, RequestRecord] = {}
        """Recovered requests that are not known to be ours yet."""

    def resume(self, state: RecoveredState) -> None:
        """Send undelivered finals of a former process, and continue its requests."""
        for kept in state.finals:
            if not kept.is_delivered:
                self._queue.expect_delivery(kept.key)
            self._keep(kept)
        # Suspects go first, those with the fewest crashes before the others.
        for record in sorted(state.requests, key=_by_crashes):
            if is_lost_with_process(record.ticket):
                self._journal.forget(record.key)
                continue
            self._recovered[record.key] = record
            self._queue.resume(record)

    def restart(self, claim: Claim) -> bool:
        """Continue the request of a claim; False if it is a new one.

        Raises RequestError.
        """
        record = self._recovered.pop(claim.key, None)
        if claim.end is not None:
            self._end_as(claim, claim.end)
        elif record is not None:
            self._runner.book(record)
            self._go(record)
        elif claim.generation:
            self._take_over(claim)
        else:
            return False
        return True

    def forget(self, key: str) -> None:
        """Forget a recovered request, which another target owns."""
        self._recovered.pop(key, None)

    def _take_over(self, claim: Claim) -> None:
        """Continue a request that another target accepted; its tokens are generated again."""
        logger.info("request taken over: request=%s from=%s", claim.key, claim.taken_from)
        record = RequestRecord(
            claim.ticket,
            claim.request,
            age_s=age_s(claim),
            # The first target may have ended for any reason, the later ones because of the request.
            num_crashes=claim.generation - 1,
            fault=DEADLY if claim.generation > MAX_TAKEN_OVER else None,
        )
        self._runner.book(record)

        def go(_: bool) -> None:
            with self._guarded(claim.ticket):
                self._go(record)  # even if the journal refuses it

        self._journal.accept(claim.ticket, claim.request, model_of(self._service), go)

    def _end_as(self, claim: Claim, end: RequestEnd) -> None:
        """Send the final that the target of a former claim made, and may have sent."""
        logger.info("final taken over: request=%s from=%s", claim.key, claim.taken_from)
        ticket = claim.ticket
        kept_until = self._journal.wall_s() + self._keep_answers_s
        final = replace(end.final, reply_topic=ticket.reply_topic, correlation=ticket.correlation)
        kept = FinishedRecord(
            claim.key, ticket.digest, end.state, final, kept_until, parts=end.parts
        )
        self._journal.finish(kept)
        self._keep(kept)

    def _keep(self, kept: FinishedRecord) -> None:
        """Keep a final of a former process or target, and send it unless it was delivered."""
        left_s = min(kept.kept_until - self._journal.wall_s(), self._keep_answers_s)
        finished = FinishedRequest(kept.digest, kept.state, kept.final, loop_time() + left_s)
        self._table.keep(kept.key, finished)
        if not kept.is_delivered:
            self._publisher.send_stream(kept.parts)
            self._publisher.send_final(kept.key, RequestEnd(kept.state, kept.final, kept.parts))

    def _go(self, record: RequestRecord) -> None:
        if record.is_elsewhere or record.is_final_sent or not self._runner.is_open:
            return
        if record.state == "accepted":
            self._publisher.send_state(record)
        self._counters.count("resumed")
        num_tokens = sum(len(committed.tokens) for committed in record.resumed.values())
        logger.info("request resumed: request=%s tokens=%d", record.key, num_tokens)
        if record.fault is not None:
            self._runner.fail(record, "failed", record.fault)
        else:
            self._runner.start(record)


def is_lost_with_process(ticket: RequestTicket) -> bool:
    """Whether no client can request the answer once this process has ended."""
    return ticket.is_local and not ticket.is_named


def age_s(claim: Claim) -> float:
    """Seconds since the client asked, by wall clocks."""
    return max(0.0, time.time() - claim.asked_s)


def _by_crashes(record: RequestRecord) -> tuple[bool, int]:
    return not record.num_crashes, record.num_crashes
