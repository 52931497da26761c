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
    Candidate,
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

ENOUGH_EVIDENCE = 3.0
"""Judged tokens after which a drafter counts as tried for a request."""
PROBE_EVERY = 24
"""Rounds between two trials of drafters while none of them pays."""


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


@dataclass(slots=True)
class RequestState:
    """What is known of one request."""

    policy: str = "edgecosine"
    rates: RequestRates = field(default_factory=RequestRates)
    rounds_since_probe: int = PROBE_EVERY


class Balancer:
    """Learns from rounds and passes; gives plans."""

    def __init__(self) -> None:
        self._drafters: dict[str, DrafterState] = {}
        self._pass_cost = PassCost()
        self.last_reason = ""

    def __repr__(self) -> str:
        return f"<Balancer [{len(self._drafters)} drafters known]>"

    def drafter(self, node_id: str) -> DrafterState:
        """What is known of a drafter; a new one is taken up."""
        return self._drafters.setdefault(node_id, DrafterState())

    def plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The next round of `request` with these drafters linked; `room` tokens are to go."""
        if request.policy == "target-alone":
            drafters = ()
        candidates = [self._candidate(node_id, request) for node_id in sorted(drafters)]
        plan = self._choose(request, candidates, room)
        self.last_reason = plan.reason
        return plan

    def fuse(self, proposals: Sequence[Proposal], room: int, waited_s: float) -> TokenTree:
        """The tree of these proposals, as large as its nodes are worth.

        `room` bounds its size; `waited_s` was spent on the drafts.
        """
        if not proposals or room < 1:
            return EMPTY_TREE
        drafts = [self._calibrated(bit, proposal) for bit, proposal in enumerate(proposals)]
        whole = union(drafts, min(MAX_NODES, room))
        worth = worthwhile_nodes(sorted(reaches(whole), reverse=True), self._pass_s(), waited_s)
        return whole if worth == len(whole) else union(drafts, worth)

    def observe_pass(self, num_rows: int, elapsed_s: float) -> None:
        """A target pass took so long."""
        self._pass_cost.observe(num_rows, elapsed_s)

    def observe_answer(
        self, node_id: str, elapsed_s: float, compute_s: float, num_tokens: int
    ) -> None:
        """A drafter answered in time."""
        state = self.drafter(node_id)
        state.num_drafted += num_tokens
        state.speed.observe(elapsed_s, compute_s, num_tokens)

    def observe_late(self, node_id: str, waited_s: float) -> None:
        """A drafter did not answer in time."""
        state = self.drafter(node_id)
        state.num_late += 1
        state.speed.observe_late(waited_s)

    def observe_truth(
        self, request: RequestState, proposal: Proposal, truth: tuple[int, ...]
    ) -> None:
        """The target committed `truth` where the drafter had proposed tokens."""
        hits, misses = judge(proposal.tokens, truth)
        state = self.drafter(proposal.node_id)
        request.rates.observe(proposal.node_id, hits, misses)
        state.record.rate.observe(hits, misses)
        for index, confidence in enumerate(proposal.confidences[: hits + misses]):
            state.calibration.observe(confidence, is_accepted=index < hits)

    def _calibrated(self, bit: int, proposal: Proposal) -> Draft:
        calibration = self.drafter(proposal.node_id).calibration
        probabilities = tuple(calibration.probability(c) for c in proposal.confidences)
        return Draft(bit, proposal.tokens, probabilities)

    def _pass_s(self) -> list[float]:
        return [self._pass_cost.expected_s(rows) for rows in range(MAX_NODES + 2)]

    def _candidate(self, node_id: str, request: RequestState) -> Candidate:
        state = self.drafter(node_id)
        return Candidate(
            node_id=node_id,
            rate=request.rates.estimate(node_id, state.record),
            evidence=request.rates.evidence(node_id),
            token_s=state.speed.token_s or 0.0,
            overhead_s=state.speed.overhead_s or 0.0,
            is_measured=state.speed.token_s is not None,
        )

    def _choose(self, request: RequestState, candidates: list[Candidate], room: int) -> Plan:
        request.rounds_since_probe += 1
        may_probe = room > 1 and request.rounds_since_probe >= PROBE_EVERY
        untried = [c for c in candidates if c.evidence < ENOUGH_EVIDENCE]
        if may_probe and untried:
            request.rounds_since_probe = 0
            return probe_plan(untried, room)
        plan = choose_plan(candidates, self._pass_s(), room)
        if may_probe and candidates and not plan.gamma:
            request.rounds_since_probe = 0
            return probe_plan(candidates, room)
        return plan
