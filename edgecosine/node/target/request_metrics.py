"""Metrics of one request, counted by round."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.balance.plan import Plan
from edgecosine.engine.base import VerificationResult
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.target.committee_metrics import CommitteeMetrics
from edgecosine.node.target.round_trace import RoundTrace
from edgecosine.protocol.api.result import DrafterShare, Metrics
from edgecosine.protocol.wire.tree import TokenTree


@dataclass(slots=True)
class RequestMetrics:
    """Counts of rounds, and of draft tokens by drafter; times in seconds."""

    by_length: Counter[int] = field(default_factory=Counter)
    num_draft_tokens: int = 0
    num_speculative_rounds: int = 0
    num_ahead_rounds: int = 0
    proposed: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    late: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    led: Counter[str] = field(default_factory=Counter)
    first: str = ""
    """The first drafter of the first plan with drafters."""
    plan: str = ""
    trace: RoundTrace = field(default_factory=RoundTrace)
    totals: Measurements = field(default_factory=Measurements)
    """Of all requests."""
    committee: CommitteeMetrics = field(default_factory=CommitteeMetrics)
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def count_plan(self, plan: Plan, *, is_ready: bool) -> None:
        """Count the plan of a round; `is_ready` if its drafts were made ahead."""
        self.plan = plan.reason
        self.totals.gamma.observe(plan.gamma)
        if plan.drafters:
            self.num_speculative_rounds += 1
            self.num_ahead_rounds += is_ready
            self.first = self.first or plan.drafters[0]
            self.led[plan.drafters[0]] += 1

    def count_round(
        self, tree: TokenTree, drafters: Sequence[str], result: VerificationResult
    ) -> None:
        """Count a verified tree; bit i of a node's proposers is drafters[i]."""
        self.by_length[len(result.path)] += 1
        if not len(tree):
            self.totals.count_round(0, 0, {}, {})
            return
        self.num_draft_tokens += len(tree)
        proposed = _by_drafter(drafters, tree.proposers)
        accepted = _by_drafter(drafters, [tree.proposers[node] for node in result.path])
        for drafter in drafters:
            self.proposed[drafter] += proposed[drafter]
            self.accepted[drafter] += accepted[drafter]
        self.totals.count_round(len(tree), len(result.path), proposed, accepted)

    def count_plain_round(
        self, tree: TokenTree, proposers: Sequence[str], result: VerificationResult, verify_s: float
    ) -> None:
        """Count a round without a plan, whose tree comes from the text itself."""
        self.totals.gamma.observe(0)
        self.count_round(tree, proposers, result)
        self.totals.count_times(plan=0.0, draft=0.0, verify=verify_s)

    def metrics(self) -> Metrics:
        """The counts as an immutable value."""
        longest = max(self.by_length, default=0)
        names = sorted({*self.proposed, *self.late, *self.led})
        return Metrics(
            acceptance_histogram=tuple(self.by_length[n] for n in range(longest + 1)),
            num_draft_tokens=self.num_draft_tokens,
            num_speculative_rounds=self.num_speculative_rounds,
            num_ahead_rounds=self.num_ahead_rounds,
            drafters={
                name: DrafterShare(
                    proposed=self.proposed[name],
                    accepted=self.accepted[name],
                    late=self.late[name],
                    led=self.led[name],
                    first=int(name == self.first),
                )
                for name in names
            },
            plan=self.plan,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            rounds=tuple(self.trace.rounds),
            began_s=self.trace.began_s,
            committee=self.committee.result(),
        )


def _by_drafter(drafters: Sequence[str], proposers: Sequence[int]) -> dict[str, int]:
    """The number of nodes that each drafter proposed, given the proposers of each node."""
    return {
        drafter: sum([each >> bit & 1 for each in proposers])
        for bit, drafter in enumerate(drafters)
    }
