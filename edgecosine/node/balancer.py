"""What the target has learned of its drafters and of itself, and the plans that follow from it.

All calls are plain and quick; nobody awaits the balancer. The learning is in `fusion` and
`balance`, here it only meets the node's events.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from edgecosine.balance.estimates import DrafterSpeed, PassCost
from edgecosine.balance.plan import (
    MAX_NODES,
    PROBE_GAMMA,
    Candidate,
    Company,
    Plan,
    choose_plan,
    probe_plan,
    worthwhile_nodes,
)
from edgecosine.fusion.calibrate import Calibration
from edgecosine.fusion.fuse import Draft, reaches, union
from edgecosine.fusion.route import Record, RequestRates, judge
from edgecosine.protocol.tree import EMPTY_TREE, TokenTree

POLICIES = ("edgecosine", "target-alone")

ENOUGH_EVIDENCE = 6.0
"""Judged tokens after which a drafter counts as tried for a request."""
FIRST_TRIALS = 3
"""Trials per drafter that follow each other while a request is new."""
TRIAL_EVERY = 6
"""Rounds between two trials of drafters that were tried before: subjects change."""
FIRST_REST = 24
LONGEST_REST = 64 * FIRST_REST
"""Plans that a drafter which keeps silent is left out of, at most."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft that came in time: a chain after the first `prefix_len` tokens of the sequence."""

    node_id: str
    prefix_len: int
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]

    def after(self, committed: Sequence[int]) -> Proposal | None:
        """What is left of the draft when it is laid on longer committed text; None if it is wrong
        there or used up."""
        since = tuple(committed[self.prefix_len :])
        size = len(since)
        if self.tokens[:size] != since or size == len(self.tokens):
            return None
        return Proposal(self.node_id, len(committed), self.tokens[size:], self.confidences[size:])


@dataclass(slots=True)
class DrafterState:
    """What is known of one drafter."""

    speed: DrafterSpeed = field(default_factory=DrafterSpeed)
    record: Record = field(default_factory=Record)
    calibration: Calibration = field(default_factory=Calibration)
    num_drafted: int = 0
    num_late: int = 0
    rest: int = 0
    """Plans that it is left out of when it is late again; twice as many each time."""
    back_at: int = 0
    """Number of the plan that it may be part of again."""


@dataclass(slots=True, eq=False)
class RequestState:
    """What is known of one request. `rows` and `tokens` are what it put into its last pass and what
    it expected of it; both count for others while it is at work."""

    policy: str = "edgecosine"
    rates: RequestRates = field(default_factory=RequestRates)
    num_trials: int = 0
    rounds_since_trial: int = 0
    rows: int = 1
    tokens: float = 1.0


class Balancer:
    """Learns from rounds and passes; gives plans."""

    def __init__(self) -> None:
        self._drafters: dict[str, DrafterState] = {}
        self._pass_cost = PassCost()
        self._at_work: set[RequestState] = set()
        self._num_plans = 0
        self.last_reason = ""

    def __repr__(self) -> str:
        return f"<Balancer [{len(self._drafters)} drafters known]>"

    def drafter(self, node_id: str) -> DrafterState:
        """What is known of a drafter; a new one is taken up."""
        return self._drafters.setdefault(node_id, DrafterState())

    def welcome(self, node_id: str) -> None:
        """A drafter was linked anew: how slow its former life was says nothing any more."""
        state = self.drafter(node_id)
        state.speed = DrafterSpeed()
        state.rest = state.back_at = 0

    def open(self, policy: str) -> RequestState:
        """A request begins; it shares the target's passes with the others that are at work."""
        request = RequestState(policy)
        self._at_work.add(request)
        return request

    def close(self, request: RequestState) -> None:
        """A request has ended."""
        self._at_work.discard(request)

    def plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The next round of `request`, with `room` tokens to go and these drafters linked."""
        self._num_plans += 1
        company = self._company(request)
        candidates = self._candidates(request, drafters)
        plan = choose_plan(candidates, self._pass_s(company), room, company)
        self.last_reason = plan.reason
        return plan

    def first_plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """Whom to ask while the target reads the prompt: everybody, for a first impression."""
        candidates = self._candidates(request, drafters)
        return probe_plan(candidates, room) if candidates and room > 1 else Plan()

    def trial(self, request: RequestState, drafters: Collection[str], plan: Plan) -> Plan:
        """Whom to ask beside the verification, for the sake of learning alone.

        Drafters that the plan leaves out take turns. Their drafts are judged by the verdict like
        all others, but nobody waits for them, so that trying costs the request no time.
        """
        request.rounds_since_trial += 1
        others = self._candidates(request, set(drafters) - set(plan.drafters))
        is_due = request.rounds_since_trial >= TRIAL_EVERY * max(1, len(self._at_work))
        is_new = len(self._at_work) <= 1 and request.num_trials < FIRST_TRIALS * len(others)
        untried = [c for c in others if c.evidence < ENOUGH_EVIDENCE]
        pool = others if is_due else untried if is_new else []
        if not pool:
            return Plan()
        request.rounds_since_trial = 0
        request.num_trials += 1
        return probe_plan([pool[request.num_trials % len(pool)]], PROBE_GAMMA + 1)

    def fuse(
        self, request: RequestState, proposals: Sequence[Proposal], room: int, waited_s: float
    ) -> TokenTree:
        """The tree of these proposals, as large as its nodes are worth.

        `room` bounds its size; `waited_s` was spent on the drafts.
        """
        tree = EMPTY_TREE
        if proposals and room > 0:
            drafts = [self._calibrated(bit, proposal) for bit, proposal in enumerate(proposals)]
            tree = union(drafts, min(MAX_NODES, room))
            company = self._company(request)
            by_reach = sorted(reaches(tree), reverse=True)
            worth = worthwhile_nodes(by_reach, self._pass_s(company), waited_s, company)
            if worth < len(tree):
                tree = union(drafts, worth)
        request.rows, request.tokens = 1 + len(tree), 1.0 + sum(reaches(tree))
        return tree

    def observe_pass(self, num_rows: int, elapsed_s: float) -> None:
        """A target pass took so long."""
        self._pass_cost.observe(num_rows, elapsed_s)

    def observe_answer(
        self,
        node_id: str,
        elapsed_s: float,
        compute_s: float,
        num_tokens: int,
        *,
        is_shared: bool = False,
    ) -> None:
        """A drafter answered in time; `is_shared` when others were asked at the same moment."""
        state = self.drafter(node_id)
        state.num_drafted += num_tokens
        state.rest = 0
        state.speed.observe(elapsed_s, compute_s, num_tokens, is_shared=is_shared)

    def observe_late(self, node_id: str, waited_s: float) -> None:
        """A drafter did not answer in time; whoever is late again is asked ever less often."""
        state = self.drafter(node_id)
        state.num_late += 1
        state.speed.observe_late(waited_s)
        if state.back_at <= self._num_plans:
            state.back_at = self._num_plans + state.rest
            state.rest = min(LONGEST_REST, 2 * state.rest or FIRST_REST)

    def observe_truth(
        self, request: RequestState, proposal: Proposal, truth: tuple[int, ...]
    ) -> None:
        """The target committed `truth` where the drafter had proposed tokens; none is a miss."""
        hits, misses = judge(proposal.tokens, truth) if proposal.tokens else (0, 1)
        state = self.drafter(proposal.node_id)
        request.rates.observe(proposal.node_id, hits, misses)
        state.record.rate.observe(hits, misses)
        for index, confidence in enumerate(proposal.confidences[: hits + misses]):
            state.calibration.observe(confidence, is_accepted=index < hits)

    def _calibrated(self, bit: int, proposal: Proposal) -> Draft:
        calibration = self.drafter(proposal.node_id).calibration
        probabilities = tuple(calibration.probability(c) for c in proposal.confidences)
        return Draft(bit, proposal.tokens, probabilities)

    def _company(self, request: RequestState) -> Company:
        """Who else will be in the next pass, if they do as they did last."""
        others = self._at_work - {request}
        return Company(
            requests=len(others),
            rows=sum(other.rows for other in others),
            tokens=sum(other.tokens for other in others),
        )

    def _pass_s(self, company: Company) -> list[float]:
        """Expected time of a pass in this company, by the rows that the request adds."""
        sizes = range(company.rows, company.rows + MAX_NODES + 2)
        return [self._pass_cost.expected_s(rows) for rows in sizes]

    def _candidates(self, request: RequestState, drafters: Collection[str]) -> list[Candidate]:
        """The drafters that may be asked, in a fixed order."""
        if request.policy == "target-alone":
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
