"""Links in virtual time: messages take time on the wire and on both event loops."""

from __future__ import annotations

import asyncio

from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.virtual_time import Core, Strand, VirtualLoop
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.links.pending_requests import PendingRequests, Reply
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
)


class VirtualLink:
    """The target's end of a link to a drafter; implements `DrafterLink`."""

    def __init__(
        self,
        *,
        loop: VirtualLoop,
        costs: Costs,
        target: Strand,
        drafter: Strand,
        worker: DraftWorker,
        traffic_core: Core | None,
    ) -> None:
        self._loop, self._costs = loop, costs
        self._target, self._drafter, self._worker = target, drafter, worker
        self._traffic_core = traffic_core
        self._asks = PendingRequests()
        self.num_messages = 0
        self.max_context, self.is_leaving = 0, False

    def ask(self, request: DraftRequest) -> asyncio.Future[Reply]:
        """Send a request; returns a future of its reply."""
        reply = self._asks.open(request)
        self._send(request)
        return reply

    def send(self, message: AnyMessage) -> None:
        """Send a message without a reply."""
        assert isinstance(message, Release)
        self._send(message)

    def _send(self, message: DraftRequest | Release) -> None:
        self.num_messages += 1
        self._target.charge(self._costs.message_s)
        self._carry()
        self._loop.call_later(
            self._costs.one_way_s, self._arrive, message, context=self._drafter.context
        )

    def _arrive(self, message: DraftRequest | Release) -> None:
        self._drafter.charge(self._costs.request_s / 2)
        self._worker.on_request(message, self._answer)

    def _answer(self, message: AnyMessage) -> None:
        self._drafter.charge(self._costs.request_s / 2)
        self._carry()
        self._loop.call_later(
            self._costs.one_way_s, self._settle, message, context=self._target.context
        )

    def _settle(self, message: Draft | OutOfStep) -> None:
        self.num_messages += 1
        self._target.charge(self._costs.message_s)
        self._asks.settle(message)

    def _carry(self) -> None:
        if self._traffic_core is not None and self._costs.carriage_s:
            self._traffic_core.run(self._costs.carriage_s, _nothing)


def _nothing() -> None:
    """Ignore the end of a message's processor time."""
