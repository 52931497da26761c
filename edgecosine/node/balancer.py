"""What the target has learned of its drafters and of itself, and the plans that follow from it.

All calls are plain and quick; nobody awaits the balancer. The learning is in `fusion` and `balance`,
here it only meets the node's events.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from edgecosine.balance.estimates import DrafterSpeed, PassCost
from edgecosine.balance.plan import MAX_GAMMA, Candidate, Plan, choose_plan, probe_plan
from edgecosine.fusion.calibrate import Calibration
from edgecosine.fusion.fuse import Draft
from edgecosine.fusion.route import Record, RequestRates, judge

POLICIES = ("edgecosine", "target-alone")

ENOUGH_EVIDENCE = 3.0
"""Judged tokens after which a drafter counts as tried for a request."""
PROBE_EVERY = 24
"""Rounds between two trials of all drafters while none of them pays."""


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
        """The next round of `request`, which has `room` tokens to go, with these drafters linked."""
        if request.policy == "target-alone":
            drafters = ()
        candidates = [self._candidate(node_id, request) for node_id in sorted(drafters)]
        plan = self._choose(request, candidates, room)
        self.last_reason = plan.reason
        return plan

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
        self,
        request: RequestState,
        node_id: str,
        tokens: tuple[int, ...],
        confidences: Sequence[float],
        truth: tuple[int, ...],
    ) -> None:
        """The target committed `truth` where the drafter had proposed `tokens`."""
        hits, misses = judge(tokens, truth)
        state = self.drafter(node_id)
        request.rates.observe(node_id, hits, misses)
        state.record.rate.observe(hits, misses)
        for index, confidence in enumerate(confidences[: hits + misses]):
            state.calibration.observe(confidence, is_accepted=index < hits)

    def calibrated(
        self,
        bit: int,
        node_id: str,
        tokens: tuple[int, ...],
        confidences: Sequence[float],
    ) -> Draft:
        """A drafter's chain with probabilities that can be compared with others'."""
        calibration = self.drafter(node_id).calibration
        return Draft(
            bit, tokens, tuple(calibration.probability(c) for c in confidences)
        )

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

    def _choose(
        self, request: RequestState, candidates: list[Candidate], room: int
    ) -> Plan:
        request.rounds_since_probe += 1
        untried = [c for c in candidates if c.evidence < ENOUGH_EVIDENCE]
        if untried and room > 1 and request.rounds_since_probe >= PROBE_EVERY:
            request.rounds_since_probe = 0
            return probe_plan(untried, room)
        pass_s = [self._pass_cost.expected_s(rows) for rows in range(MAX_GAMMA + 2)]
        plan = choose_plan(candidates, pass_s, room)
        if plan.gamma or not candidates or room < 2:
            return plan
        if request.rounds_since_probe >= PROBE_EVERY:
            request.rounds_since_probe = 0
            return probe_plan(candidates, room)
        return plan
