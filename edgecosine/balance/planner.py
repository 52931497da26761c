"""Decides how each request speculates: which drafters are asked, for how many tokens, and how many
of them are verified.

All calls are synchronous and quick.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from edgecosine.balance.ahead_plan import AHEAD_WIDTH, plan_ahead
from edgecosine.balance.baselines.planner import BaselinePlanner
from edgecosine.balance.baselines.rules import Similarity, equality
from edgecosine.balance.candidates import candidates_of
from edgecosine.balance.first_probes import first_asked
from edgecosine.balance.fixed_plan import fixed_plan
from edgecosine.balance.fresh_draft_gain import pays_to_wait
from edgecosine.balance.lock_step import as_one_request, waits_together
from edgecosine.balance.plan import (
    ALONE,
    MAX_NODES,
    PROBE_GAMMA,
    TRIAL_GAMMA,
    Candidate,
    CoBatchedRequests,
    Plan,
    ask_around,
    best_speed,
    choose_plan,
    probe_plan,
    worth_asking,
    worthwhile_nodes,
)
from edgecosine.balance.policy import FIXED_DRAFTERS, Policy
from edgecosine.balance.probes import (
    ENOUGH_EVIDENCE,
    SHARED_PACE,
    choose_probe,
    is_due,
    may_probe,
    pace_of,
)
from edgecosine.balance.rendezvous_hash import weight
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round, union_of
from edgecosine.balance.speculation_switch import Speed
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.acceptance_rates import lower_bound
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.ngram_table import NgramTable
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

MOST_IN_DOUBT = 8
"""Most requests beside each other that ask all drafters when in doubt: of more the messages would
fill the target's event loop."""

NEXT_TO_NOTHING = 1.05
"""Time of a pass with as many rows as a wide step, over that with those of a narrow one, up to
which the processor's memory bounds both."""


class Planner:
    """Makes plans and trees from `statistics`; a baseline compares tokens by `similarity`. `ngrams`
    of the target's earlier texts are known at first."""

    def __init__(self, similarity: Similarity = equality, ngrams: NgramTable | None = None) -> None:
        self.statistics = Statistics(ngrams)
        self.baselines = BaselinePlanner(self.statistics, similarity)
        self._last_reason = ""
        self._last_plain: Policy | None = None
        """The policy of the last round, if `is_plain` decided it."""

    def __repr__(self) -> str:
        return f"<Planner [{len(self.statistics.drafters)} drafters known]>"

    def of(self, request: RequestState) -> Planner | BaselinePlanner:
        """The planner of the request's policy."""
        return self if request.policy.baseline is None else self.baselines

    def batching(self, request: RequestState) -> None:
        """None: a pass takes all requests that are ready."""

    def observe_truth(
        self, request: RequestState, drafts: Sequence[DrafterTree], committed: Sequence[int]
    ) -> None:
        """Learn from drafts whose tokens the target has accepted or rejected."""
        self.statistics.acceptance.observe_truth(request, drafts, committed)
        if drafts:
            request.trial.reconsider()

    @property
    def last_reason(self) -> str:
        """The reason of the last plan."""
        if self._last_plain is None:
            return self._last_reason
        return self.statistics.why_plain(self._last_plain)

    def is_plain(self, request: RequestState) -> bool:
        """Whether the next round has no drafts and no probe, whatever the drafters are, since plain
        decoding was measured to be better for so many requests. Such a round is counted, and costs
        no other decision."""
        statistics = self.statistics
        if statistics.budget(request) is not None and request.trial.is_plain:
            request.trial.count_plain()
            return self._count_plain(request)
        if statistics.speculates(request):
            return False
        pace = pace_of(statistics.num_active, is_resting=True)
        if may_probe(request.rounds_since_probe + 1, pace):
            return False
        return self._count_plain(request)

    def _count_plain(self, request: RequestState) -> bool:
        self.statistics.count_plan()
        if request.rows > 1:
            self.statistics.set_size(request, 1, 1.0)
        request.rounds_since_probe += 1
        self._last_plain = request.policy
        return True

    def plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The plan of the next round, with `room` tokens to generate and these drafters linked."""
        self.statistics.count_plan()
        policy = request.policy
        self._last_plain = None
        if not self.statistics.speculates(request):
            self._last_reason = self.statistics.why_plain(request.policy)
            return Plan(reason=self._last_reason)
        candidates = self._candidates(request, drafters)
        if policy.is_adaptive:
            plan = self._adaptive_plan(request, candidates, room)
            plan = self._afforded(request, plan, candidates, room)
        else:
            plan = fixed_plan(policy, candidates, room)
        plan = replace(plan, width=self._width(request, plan))
        self._last_reason = plan.reason
        return plan

    def _afforded(
        self, request: RequestState, plan: Plan, candidates: Sequence[Candidate], room: int
    ) -> Plan:
        """The plan, if the request may follow it: it is certain to be faster than plain decoding,
        was measured to be, or may be tried."""
        budget = self.statistics.budget(request)
        if budget is None:
            return plan

        def lead() -> Candidate:
            return next(each for each in candidates if each.node_id == plan.drafters[0])

        def is_certain() -> bool:
            return self._is_certain(request, lead(), room)

        why = budget.why_plain(request.trial, request.pace, room, plan.drafters, is_certain)
        if why is None and (budget.settle(request.trial, request.pace) or is_certain()):
            return plan
        if why is None:
            return self._adaptive_plan(request, [replace(lead(), longest=TRIAL_GAMMA)], room)
        if request.trial.rest_left:
            request.pace = Speed()
        return Plan(reason=f"K=0: {why}: {plan.reason}" if why else plan.reason)

    def _is_certain(self, request: RequestState, candidate: Candidate, room: int) -> bool:
        """Whether a known drafter pays even at the lower bound of its acceptance rate."""
        judged = request.rates.judged(candidate.node_id)
        if judged < ENOUGH_EVIDENCE:
            return False
        lower = replace(candidate, rate=lower_bound(candidate.rate, judged))
        co_batched = self.statistics.co_batched(request)
        pass_s = self.statistics.pass_times(co_batched)
        least = choose_plan([lower], pass_s, room, co_batched, request.overlap)
        return bool(least.drafters) and least.speed > self._speed_without(request, co_batched)

    def _speed_without(self, request: RequestState, co_batched: CoBatchedRequests) -> float:
        """Expected tokens per second without drafters."""
        return self.statistics.plain_speed(co_batched) * request.trial.local_speedup

    def first_plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The probes during prefill: all drafters, or, of many or of many on one machine, the most
        promising ones and some with the least evidence. Empty while no request speculates."""
        if not self.statistics.speculates(request):
            return Plan()
        candidates = first_asked(request, self._worth_asking(request, drafters), self.statistics)
        budget = self.statistics.budget(request)
        if budget is not None:
            certain = [each for each in candidates if self._is_certain(request, each, room)]
            candidates = candidates[: budget.num_probes] or certain[:1]
        if not candidates or room < 2:
            return Plan()
        return replace(probe_plan(candidates, room), is_probe=True)

    def start_round(
        self, request: RequestState, plan: Plan, ahead: Sequence[DrafterTree] = ()
    ) -> Round:
        """The round of a plan, with the decision whether drafts made ahead suffice for it."""
        if not plan.drafters:
            return Round(plan, ahead)
        if not request.policy.is_adaptive:
            return Round(plan, ahead, is_ready=bool(ahead) and request.policy.is_ahead)
        union = union_of(ahead, request, self.statistics.drafters)
        paths = union.path_probabilities[:MAX_NODES]
        leaf_mass = union.leaf_mass if ahead else 1.0
        must_wait = not ahead and not (request.policy.is_ahead and request.pace.num_passes)
        tokens_per_s = request.pace.per_s
        if waits_together(plan.drafters, self.statistics):
            pass_s, co_batched = as_one_request(request, self.statistics)
            must_wait, tokens_per_s = False, 0.0
        else:
            co_batched = self.statistics.co_batched(request)
            pass_s = self.statistics.pass_times(co_batched)
        if not must_wait and not pays_to_wait(
            paths,
            leaf_mass,
            self.statistics.fresh_draft_gain,
            plan.draft_s,
            pass_s,
            co_batched,
            tokens_per_s,
        ):
            return Round(plan, ahead, union=union)
        tokens = 1.0 + sum(paths[: worthwhile_nodes(paths, pass_s, 0.0, co_batched)])
        return Round(plan, ahead, False, union, tokens, leaf_mass)

    def fuse(
        self, request: RequestState, current: Round, room: int, waited_s: float = 0.0
    ) -> TokenTree:
        """The tree of the round's drafts and of the target's own, as large as its nodes are worth
        and at most `room` nodes.

        `waited_s` is the time that the round has waited for drafts.
        """
        tree, expected = EMPTY_TREE, 1.0
        if (current.drafts or len(request.own_draft)) and room > 0:
            union = current.union
            if union is None:
                union = union_of(current.drafts, request, self.statistics.drafters)
            most = min(MAX_NODES, room)
            if request.policy.is_adaptive and current.drafts:
                co_batched = self.statistics.co_batched(request)
                pass_s = self.statistics.pass_times(co_batched)
                paths = union.path_probabilities[:most]
                most = worthwhile_nodes(paths, pass_s, waited_s, co_batched)
                plain_speed = self.statistics.plain_speed(co_batched)
                if best_speed(paths, pass_s, co_batched) < plain_speed:
                    most = 0
            tree = union.tree(most)
            expected += sum(union.path_probabilities[:most])
            if current.tokens_ahead is not None:
                gain = self.statistics.fresh_draft_gain
                gain.observe(current.tokens_ahead, expected, current.leaf_mass_ahead)
        self.statistics.set_size(request, 1 + len(tree), expected)
        return tree

    def ahead(
        self, request: RequestState, drafters: Collection[str], plan: Plan, tree: TokenTree
    ) -> Plan:
        """The plan to draft after all endpoints of `tree` while the target verifies it."""
        return plan_ahead(request, drafters, plan, tree, self.statistics)

    def probe(
        self,
        request: RequestState,
        drafters: Collection[str],
        plan: Plan,
        probed: Collection[str] = (),
    ) -> Plan:
        """The plan to probe one of the drafters that `plan` leaves out, in turns; mostly empty.

        While drafters are `probed`, none of their machines is probed; the machines of the plan's
        drafters are probed `SHARED_PACE` times more rarely.
        """
        request.rounds_since_probe += 1
        num_probes, since = request.num_probes, request.rounds_since_probe
        is_resting = not self.statistics.speculates(request)
        pace = pace_of(self.statistics.num_active, is_resting=is_resting)
        if not may_probe(since, pace):
            return Plan()
        budget = self.statistics.budget(request)
        if budget is not None and not budget.num_probes:
            return Plan()
        busy = set(plan.drafters) | set(probed)
        hosts = self.statistics.hosts(probed if is_due(since, pace * SHARED_PACE) else busy)
        others = [
            candidate
            for candidate in self._worth_asking(request, drafters)
            if candidate.node_id not in busy
            and self.statistics.drafter(candidate.node_id).host not in hosts
        ]
        is_plain = not plan.drafters
        chosen = choose_probe(others, num_probes, since, pace, is_plain=is_plain)
        if chosen is None:
            return Plan()
        request.rounds_since_probe = 0
        request.num_probes += 1
        return replace(probe_plan([chosen], PROBE_GAMMA + 1), is_probe=True)

    def _adaptive_plan(self, request: RequestState, candidates: list[Candidate], room: int) -> Plan:
        overlap = request.overlap if request.policy.is_ahead else 0.0
        leaders = candidates
        if request.policy.routing == "drawn":
            candidates = _drawn(request, candidates)
            leaders = candidates[:1]
        if waits_together((each.node_id for each in candidates), self.statistics):
            pass_s, co_batched = as_one_request(request, self.statistics)
            return choose_plan(leaders, pass_s, room, co_batched, overlap)
        co_batched = self.statistics.co_batched(request)
        pass_s = self.statistics.pass_times(co_batched)
        plan = choose_plan(leaders, pass_s, room, co_batched, overlap)
        if not plan.drafters:
            return plan
        plain_speed = self._speed_without(request, co_batched)
        if plan.speed < plain_speed:
            why = f"{plan.speed:.0f} tokens/s at {plan.reason}; {plain_speed:.0f} without"
            return Plan(reason=f"K=0: {why}")
        is_doubtful = request.rates.is_doubtful(plan.drafters[0])
        if is_doubtful and co_batched.requests < MOST_IN_DOUBT:
            return ask_around(plan, candidates, request.policy.max_drafters)
        return plan

    def _worth_asking(
        self, request: RequestState, drafters: Collection[str]
    ) -> Sequence[Candidate]:
        """The drafters that plans may turn to."""
        candidates = self._candidates(request, drafters)
        co_batched = self.statistics.co_batched(request)
        pass_s = self.statistics.pass_times(co_batched)
        return worth_asking(candidates, pass_s, co_batched, request.overlap)

    def _width(self, request: RequestState, plan: Plan) -> int:
        """Nodes that a drafter reads per step. One that shares the target's processor reads as many
        as drafts ahead, of which it makes none, where they cost that processor next to nothing."""
        width = request.policy.width
        if width and any(map(self.statistics.contention.of, plan.drafters)):
            pass_s = self.statistics.pass_times(ALONE)
            if pass_s[AHEAD_WIDTH] <= NEXT_TO_NOTHING * pass_s[width]:
                return AHEAD_WIDTH
        return max(1, width)

    def _candidates(self, request: RequestState, drafters: Collection[str]) -> list[Candidate]:
        """The drafters that may be asked, sorted by node id."""
        return candidates_of(request, drafters, self.statistics)


def _drawn(request: RequestState, candidates: Sequence[Candidate]) -> list[Candidate]:
    """As many candidates as are not chosen by what they add, at random for each request."""
    drawn = sorted(candidates, key=lambda each: weight(str(request.number), each.node_id))
    return drawn[: min(FIXED_DRAFTERS, request.policy.max_drafters)]
