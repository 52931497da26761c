"""Counts a session's rounds and learns from them, while the next pass runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edgecosine.balance.baselines.planner import BaselinePlanner
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.node.target.session_round import EndedRound
from edgecosine.protocol.wire.prefix import Prefix

logger = logging.getLogger(__name__)


class RoundLearning:
    """Keeps the last round until `catch_up`, which is called before the next one is committed."""

    def __init__(
        self,
        key: str,
        request: RequestState,
        statistics: Statistics,
        planner: Planner | BaselinePlanner,
        metrics: RequestMetrics,
        sequence: Prefix,
    ) -> None:
        self._key, self._request, self._statistics = key, request, statistics
        self._planner, self._metrics, self._sequence = planner, metrics, sequence
        self._last: EndedRound | None = None
        self._spent_s = 0.0
        """What `catch_up` took last."""

    def __repr__(self) -> str:
        return f"<RoundLearning {self._key} [{'behind' if self._last else 'up to date'}]>"

    def add(self, ended: EndedRound) -> None:
        """A round with a plan has ended, after `catch_up`."""
        self._last = ended

    def catch_up(self) -> None:
        """Count the last round, and learn from it what later plans depend on."""
        ended, self._last = self._last, None
        if ended is None:
            return
        moment = now()
        begun, result, current = ended.begun, ended.result, ended.begun.current
        assert current is not None, "plain rounds are learned from at once"
        self.note_times(ended)
        self._metrics.count_round(begun.tree, begun.drafters, result)
        self._metrics.totals.count_times(
            plan=begun.plan_s, draft=begun.waited_s, verify=ended.ended_s - begun.submitted_s
        )
        logger.debug(
            "round: request=%s drafters=%s nodes=%d accepted=%d plan=%s",
            self._key, begun.drafters, len(begun.tree), len(result.path), current.plan.reason,
        )  # fmt: skip
        if current.plan.drafters:
            self._statistics.observe_round(
                self._request,
                waited_s=begun.plan_s + begun.waited_s,
                was_ready=current.is_ready and bool(current.drafts),
                num_accepted=len(result.path),
                round_s=ended.ended_s - begun.began_s,
            )
        self.observe_truth([*current.drafts, *ended.probed])
        if self._statistics.num_active == 1:
            for node_id in ended.missed:
                self._request.rates.note_missed(node_id)
        self._spent_s = now() - moment

    def observe_truth(self, drafts: Sequence[DrafterTree]) -> None:
        """Learn from drafts that the committed tokens answer."""
        committed = self._sequence.tokens
        self._planner.observe_truth(self._request, drafts, committed)
        self._statistics.acceptance.observe_text(self._request, committed)

    def note_times(self, ended: EndedRound) -> None:
        """Learn a round's time besides its pass and its wait for drafts, and its whole time since
        the end of the former round."""
        begun, statistics = ended.begun, self._statistics
        round_s = ended.ended_s - begun.began_s
        if statistics.num_active == 1:
            waited_s = begun.plan_s + begun.waited_s
            busy_s = max(begun.busy_s, round_s - waited_s - ended.pass_s)
        else:
            # What one session does while the pass runs, delays the rounds of others.
            busy_s = begun.busy_s + self._spent_s
        self._spent_s = 0.0
        is_plain = begun.current is None or not begun.current.plan.drafters
        statistics.observe_bookkeeping(busy_s, is_plain=is_plain)
        num_tokens = 1 + len(ended.result.path)
        statistics.observe_lone_round(
            self._request, num_tokens, round_s,
            is_quiet=begun.is_quiet, is_plain=not len(begun.tree),
        )  # fmt: skip
