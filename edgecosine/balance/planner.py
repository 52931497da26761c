"""The plans that follow from what was learned: whom to ask, how much, and what to verify of it.

All calls are plain and quick; nobody awaits the balancer. The rules are in `fusion` and `balance`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edgecosine.balance.batch_wait import ExpectedArrival, hold_s
from edgecosine.balance.fresh_draft_gain import pays_to_ask
from edgecosine.balance.plan import (
    MAX_NODES,
    PROBE_GAMMA,
    Candidate,
    CoBatchedRequests,
    Plan,
    add_rescuers,
    best_speed,
    choose_plan,
    deadline,
    probe_plan,
    worthwhile_nodes,
)
from edgecosine.balance.policy import FIXED_GAMMA
from edgecosine.balance.probes import may_try, pace_of, whom_to_try
from edgecosine.balance.rendezvous_hash import weight
from edgecosine.balance.statistics import RequestState, Statistics
from edgecosine.balance.steps import MUCH_SURER, WHOLE_EVERY, DrafterTeam, best_steps, explain
from edgecosine.fusion.acceptance_rates import PRIOR_WEIGHT
from edgecosine.fusion.fuse import CalibratedDraft, DraftUnion, reaches
from edgecosine.fusion.outcomes import fan_out
from edgecosine.fusion.proposal import Proposal
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

FIRST_ASKED = 8
"""Drafters that are asked while the prompt is read, at most: each ask keeps the loop busy."""
PROMISING = 5
"""Those among them that are chosen by what is expected of them; the others by how little is known.
"""
AHEAD_WIDTH = 6
"""Nodes that a drafter reads per step while it guesses ahead: it has the time of a pass."""
AHEAD_STEPS = (3, 24)
"""Fewest and most steps ahead."""
LEAST_STRENGTH = 0.01
"""Acceptance rate that a drafter is taken for at least, when outcomes are shared out."""
COSINE_GOOD = 2.0
"""Accepted tokens per round from which the paper's routing exploits (CoSine, section 4.2)."""


class Planner(Statistics):
    """Gives plans, from what it has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.last_reason = ""

    def __repr__(self) -> str:
        return f"<Planner [{len(self._drafters)} drafters known]>"

    def plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The next round of `request`, with `room` tokens to go and these drafters linked."""
        self._num_plans += 1
        policy = request.policy
        if self._is_resting(request):
            regimes = self._regimes[policy.name]
            self.last_reason = f"K=0: {regimes.reason(len(self._at_work))}"
            return Plan(reason=self.last_reason)
        candidates = self._candidates(request, drafters)
        if policy.is_adaptive:
            plan = self._adaptive_plan(request, candidates, room)
        else:
            plan = self._fixed_plan(request, candidates, room)
        plan = replace(plan, width=max(1, policy.width))
        self.last_reason = plan.reason
        return plan

    def first_plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """Whom to ask while the target reads the prompt, for a first impression: everybody; of many
        the most promising, and some of those who are known the least. Nobody while no request
        speculates."""
        if self._is_resting(request):
            return Plan()
        candidates = self._candidates(request, drafters)
        if len(candidates) > FIRST_ASKED:
            by_rate = sorted(candidates, key=lambda c: -c.rate)
            promising, others = by_rate[:PROMISING], by_rate[PROMISING:]
            others.sort(key=lambda c: self.drafter(c.node_id).record.rate.evidence)
            candidates = [*promising, *others[: FIRST_ASKED - PROMISING]]
        if not candidates or room < 2:
            return Plan()
        return replace(probe_plan(candidates, room), is_trial=True)

    def is_enough(self, request: RequestState, ready: Sequence[Proposal], plan: Plan) -> bool:
        """Whether to verify what is there, rather than to wait for the drafts of `plan`."""
        if not plan.drafters:
            return True
        if not ready:
            return False
        if not request.policy.is_adaptive:
            return request.policy.is_ahead
        company = self._company(request)
        request.ready = ready, self._union(request, ready)
        union, pass_s = request.ready[1], self._pass_s(company)
        reached = union.reaches[:MAX_NODES]
        if not pays_to_ask(reached, union.open_reach, self._gain, plan, pass_s, company):
            return True
        request.left = 1.0 + sum(reached[: worthwhile_nodes(reached, pass_s, 0.0, company)]), union
        return False

    def ahead(
        self, request: RequestState, drafters: Collection[str], plan: Plan, tree: TokenTree
    ) -> Plan:
        """Whom to ask, beside the verification of `tree`, for what comes after it."""
        policy = request.policy
        asked = tuple(node_id for node_id in plan.drafters if node_id in drafters)
        if not policy.is_ahead or not asked:
            return Plan()
        fewest, most = AHEAD_STEPS
        step_s = self.drafter(asked[0]).speed.ahead_step_s
        pass_s = self._pass_s(self._company(request))[1 + len(tree)]
        steps = round(pass_s / step_s) if step_s else plan.gamma + 1
        return Plan(
            drafters=asked,
            shares=self._outcome_shares(request, asked, tree),
            gamma=min(most, max(fewest, steps)),
            width=AHEAD_WIDTH if policy.width else 1,
            deadline_s=pass_s + plan.deadline_s,
        )

    def _outcome_shares(
        self, request: RequestState, asked: Sequence[str], tree: TokenTree
    ) -> Mapping[str, bytes]:
        """Several drafters share the tree's outcomes out by what each finds right in the steps that
        it makes in a pass."""
        if len(asked) < 2 or not request.policy.fans_out:
            return {}
        states = [self.drafter(node_id) for node_id in asked]
        steps_s = [state.speed.ahead_step_s for state in states]
        strengths = []
        for node_id, state, step_s in zip(asked, states, steps_s, strict=True):
            rate = max(LEAST_STRENGTH, request.rates.estimate(node_id, state.record))
            strengths.append(rate / (step_s if step_s and all(steps_s) else 1.0))
        return dict(zip(asked, fan_out(tree, strengths), strict=True))

    def patience_s(self, ahead: Plan) -> float:
        """How long answers ahead may come after the verdict: by then a new ask would be there."""
        speeds = [self.drafter(node_id).speed for node_id in ahead.drafters]
        return max((speed.overhead_s or 0.0 for speed in speeds), default=0.0)

    def trial(self, request: RequestState, drafters: Collection[str], plan: Plan) -> Plan:
        """Whom to ask beside the verification, for the sake of learning alone.

        Drafters that the plan leaves out take turns. Their drafts are judged by the verdict like
        all others, but nobody waits for them.
        """
        request.rounds_since_trial += 1
        num_trials, since = request.num_trials, request.rounds_since_trial
        pace = pace_of(len(self._at_work), is_resting=self._is_resting(request))
        if not may_try(since, pace):
            return Plan()
        others = self._candidates(request, set(drafters) - set(plan.drafters))
        is_plain = not plan.drafters
        chosen = whom_to_try(others, num_trials, since, pace, is_plain=is_plain)
        if chosen is None:
            return Plan()
        request.rounds_since_trial = 0
        request.num_trials += 1
        return replace(probe_plan([chosen], PROBE_GAMMA + 1), is_trial=True)

    def fuse(
        self, request: RequestState, proposals: Sequence[Proposal], room: int, waited_s: float
    ) -> TokenTree:
        """The tree of these proposals, as large as its nodes are worth.

        `room` bounds its size; `waited_s` was spent on the drafts.
        """
        tree = EMPTY_TREE
        if proposals and room > 0:
            ready, union = request.ready or (None, None)
            if union is None or ready is not proposals:
                union = self._union(request, proposals)
            most = min(MAX_NODES, room)
            if request.policy.is_adaptive:
                company = self._company(request)
                pass_s = self._pass_s(company)
                reached = union.reaches[:most]
                most = worthwhile_nodes(reached, pass_s, waited_s, company)
                if best_speed(reached, pass_s, company) < self._speed_of_all_plain(company):
                    most = 0
            tree = union.tree(most)
            if request.left is not None:
                before, left = request.left
                self._gain.observe(before, 1.0 + sum(union.reaches[:most]), left.open_reach)
        request.ready, request.left, request.waited_s = None, None, waited_s
        request.rows, request.tokens = 1 + len(tree), 1.0 + sum(reaches(tree))
        return tree

    def hold_s(self, num_rows: int, latecomers: Sequence[ExpectedArrival]) -> float | None:
        """How long to hold a pass of so many rows back for latecomers; None: not at all."""
        return hold_s(num_rows, latecomers, self._pass_cost.expected_s)

    def _is_resting(self, request: RequestState) -> bool:
        """Whether plain decoding was measured to be better with so many requests at work."""
        if not request.policy.is_adaptive:
            return False
        return not self._regimes[request.policy.name].speculates(len(self._at_work))

    def _adaptive_plan(self, request: RequestState, candidates: list[Candidate], room: int) -> Plan:
        company = self._company(request)
        pass_s = self._pass_s(company)
        hidden = request.hidden if request.policy.is_ahead else 0.0
        leaders = candidates
        if request.policy.routing == "drawn":
            candidates = _drawn(request, candidates)
            leaders = candidates[:1]
        plan = choose_plan(leaders, pass_s, room, company, hidden)
        if not plan.drafters:
            return plan
        plain_speed = self._speed_of_all_plain(company)
        if plan.speed < plain_speed:
            why = f"{plan.speed:.0f} tokens/s at {plan.reason}; {plain_speed:.0f} if nobody drafts"
            return Plan(reason=f"K=0: {why}")
        most = request.policy.max_drafters
        rescue = self._rescues.estimate
        crowding = self._crowding.factor
        plan = add_rescuers(plan, candidates, rescue, most, pass_s, company, hidden, crowding)
        if plan.drafters and request.policy.may_step and not company.requests:
            return self._stepwise_plan(request, candidates, plan, pass_s, room)
        return plan

    def _stepwise_plan(
        self,
        request: RequestState,
        candidates: Sequence[Candidate],
        plan: Plan,
        pass_s: Sequence[float],
        room: int,
    ) -> Plan:
        """As many drafters as may take part, step by step, where that is better or to be tried."""
        rate = max(c.rate for c in candidates if c.node_id in plan.drafters)
        winner_rate = request.winner.mean(self._winner.mean(rate, PRIOR_WEIGHT), PRIOR_WEIGHT)
        if winner_rate < rate + MUCH_SURER or request.since_whole >= WHOLE_EVERY:
            return plan
        ranked = sorted(candidates, key=lambda c: (c.node_id not in plan.drafters, -c.rate))
        members = ranked[: request.policy.max_drafters]
        if len(members) < 2:
            return plan
        crowding = self._crowding.factor(len(members))
        team = DrafterTeam(
            size=len(members),
            winner_rate=winner_rate,
            rate=rate,
            exchange_s=crowding * max(member.overhead_s for member in members),
            token_s=crowding * max(member.token_s for member in members),
        )
        steps = best_steps(team, pass_s, room, self._bookkeeping_s[False])
        if steps is None or not self._stepping.wants(steps.speed, request.whole):
            return plan
        piece_s = team.exchange_s + steps.interval * team.token_s
        return replace(
            plan,
            drafters=tuple(member.node_id for member in members),
            gamma=steps.gamma,
            interval=steps.interval,
            speed=steps.speed,
            draft_s=steps.draft_s,
            deadline_s=deadline(piece_s, steps.gamma * pass_s[1], is_measured=True),
            reason=explain(steps, team, request.whole.per_s),
        )

    def _fixed_plan(self, request: RequestState, candidates: list[Candidate], room: int) -> Plan:
        """As many tokens as ever, of the best drafters, of everybody, or by the paper's rule."""
        policy = request.policy
        gamma = min(FIXED_GAMMA, room - 1)
        by_rate = sorted(candidates, key=lambda c: -c.rate)
        if policy.routing == "cosine":
            is_good = (request.accepted or 0.0) >= COSINE_GOOD
            by_rate = by_rate[: 2 if is_good else len(by_rate)]
        chosen = by_rate[: policy.max_drafters]
        if not chosen or gamma < 1:
            return Plan(reason=f"K=0: {policy.name}")
        plan = probe_plan(chosen, room)
        pieces = math.ceil(gamma / policy.interval) if policy.interval else 1
        return replace(
            plan,
            gamma=gamma,
            interval=policy.interval,
            draft_s=max(pieces * c.overhead_s + gamma * c.token_s for c in chosen),
            reason=f"K={gamma}: {policy.name}",
        )

    def _speed_of_all_plain(self, company: CoBatchedRequests) -> float:
        """Tokens per second of a pass in which nobody has drafts.

        Where rows are dear each request's drafts may pay beside the others', although all would be
        served sooner without any.
        """
        size = company.requests + 1
        pass_s = self._pass_cost.expected_s(size)
        return size / (pass_s + size * self._bookkeeping_s[True]) if pass_s > 0.0 else 0.0

    def _union(self, request: RequestState, proposals: Sequence[Proposal]) -> DraftUnion:
        policy = request.policy
        if not policy.width:
            proposals = [proposal.chain() for proposal in proposals]
        drafts = [self._calibrated(request, bit, p) for bit, p in enumerate(proposals)]
        if not policy.fuses:
            drafts = [
                max(drafts, key=lambda draft: sum(reaches(DraftUnion([draft]).tree(MAX_NODES))))
            ]
        return DraftUnion(drafts)

    def _calibrated(self, request: RequestState, bit: int, proposal: Proposal) -> CalibratedDraft:
        probabilities = proposal.confidences
        if request.policy.is_calibrated:
            calibration = request.calibration(self.drafter(proposal.node_id))
            probabilities = calibration.probabilities(probabilities)
        return CalibratedDraft(
            bit, proposal.tokens, probabilities, proposal.parents, proposal.trunk
        )

    def _company(self, request: RequestState) -> CoBatchedRequests:
        """Who else will be in the next pass, if they do as they did last."""
        others = self._at_work - {request}
        return CoBatchedRequests(
            requests=len(others),
            rows=sum(other.rows for other in others),
            tokens=sum(other.tokens for other in others),
            bookkeeping_s=len(self._at_work) * self._bookkeeping_s[False],
        )

    def _pass_s(self, company: CoBatchedRequests) -> list[float]:
        """Expected time of a pass in this company, by the rows that the request adds."""
        return self._pass_cost.span(company.rows, MAX_NODES + 2)

    def _candidates(self, request: RequestState, drafters: Collection[str]) -> list[Candidate]:
        """The drafters that may be asked, in a fixed order."""
        if not request.policy.max_drafters:
            return []
        awake = (n for n in sorted(drafters) if self.drafter(n).back_at <= self._num_plans)
        return [self._candidate(node_id, request) for node_id in awake]

    def _candidate(self, node_id: str, request: RequestState) -> Candidate:
        state = self.drafter(node_id)
        return Candidate(
            node_id=node_id,
            rate=request.rates.estimate(node_id, state.record),
            evidence=request.rates.evidence(node_id),
            token_s=state.speed.token_s or 0.0,
            overhead_s=state.speed.overhead_s or 0.0,
            is_measured=state.speed.overhead_s is not None,
        )


def _drawn(request: RequestState, candidates: Sequence[Candidate]) -> list[Candidate]:
    """As many as may be asked, by lot, so that nothing that was learned chooses them."""
    by_lot = sorted(candidates, key=lambda each: weight(str(request.number), each.node_id))
    return by_lot[: request.policy.max_drafters]
