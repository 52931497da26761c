"""What the target has learned of its drafters, of itself, and of the requests at work.

All calls are plain and quick. The learning is in `fusion` and `balance`, here it only meets the
node's events.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.balance.cost_model import (
    ContentionFactor,
    DrafterSpeed,
    PassCost,
    PassReport,
    smooth,
)
from edgecosine.balance.fresh_draft_gain import FreshDraftGain
from edgecosine.balance.plan import PROBE_GAMMA, Plan
from edgecosine.balance.policy import POLICIES, Policy
from edgecosine.balance.speculation_switch import SpeculationSwitch, Speed
from edgecosine.balance.steps import StepwiseGain
from edgecosine.fusion.acceptance_rates import (
    RECORD_MEMORY,
    REQUEST_MEMORY,
    AcceptanceRate,
    ConditionalAcceptance,
    DrafterRecord,
    PromptScoreGain,
    RequestRates,
    foresee,
)
from edgecosine.fusion.calibration import Calibration
from edgecosine.fusion.fuse import DraftUnion
from edgecosine.fusion.proposal import Proposal
from edgecosine.fusion.text_similarity import Features, TextMemory, features
from edgecosine.protocol.wire.prompt_score import MAX_SCORED_TOKENS

FIRST_REST = 24
LONGEST_REST = 64 * FIRST_REST
"""Plans that a drafter which keeps silent is left out of, at most."""
MUCH_QUICKER = 0.5
"""Share of the time that a drafter once took, from which on speculation is tried again."""
SUBJECT_LASTS = 48
"""Tokens after which a text is looked at anew."""
MAX_KNOWN = 1024
"""Drafters of which something is known: beyond it, those that were linked the longest ago go."""


@dataclass(slots=True)
class DrafterState:
    """What is known of one drafter. Calibration differs with and without noise."""

    speed: DrafterSpeed = field(default_factory=DrafterSpeed)
    record: DrafterRecord = field(default_factory=DrafterRecord)
    greedy_calibration: Calibration = field(default_factory=Calibration)
    sampled_calibration: Calibration = field(default_factory=Calibration)
    slowest_s: float = 0.0
    """Longest that a short draft of it was expected to take, since it last became much quicker."""
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

    policy: Policy = POLICIES["edgecosine"]
    is_greedy: bool = True
    num_prompt: int = 0
    number: int = 0
    """Of the requests that this node has opened; lots are drawn by it."""
    surprises: dict[str, float] = field(default_factory=dict)
    """Of the drafters that have read the text as it was before the first round."""
    leader: str | None = None
    """The least surprised of those whose word is good."""
    first_length: int = 0
    """Tokens of that text."""
    rates: RequestRates = field(default_factory=RequestRates)
    num_trials: int = 0
    rounds_since_trial: int = 0
    rows: int = 1
    tokens: float = 1.0
    hidden: float = 0.5
    """Share of rounds whose drafts were there when the verdict was."""
    text: Features | None = None
    """What the request was about when it was last looked at, after `text_length` tokens."""
    text_length: int = 0
    on_text: RequestRates = field(default_factory=RequestRates)
    """What its rounds taught since."""
    accepted: float | None = None
    """Accepted tokens per round, smoothed."""
    winner: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(REQUEST_MEMORY))
    """How often the surest of several drafts was right at its first token."""
    waited_s: float = 0.0
    """For the drafts of its last tree."""
    whole: Speed = field(default_factory=Speed)
    """Tokens per second of its rounds whose drafts were fused once."""
    since_whole: int = 0
    """Rounds since the last one of these."""
    ready: tuple[Sequence[Proposal], DraftUnion] | None = None
    """What was there when the round began, and its union: made once, to judge it and to verify it.
    """
    left: tuple[float, DraftUnion] | None = None
    """Tokens that were expected of what was there, and its union, in a round that asks for more."""

    def calibration(self, drafter: DrafterState) -> Calibration:
        """What a drafter's word is worth for this request."""
        return drafter.greedy_calibration if self.is_greedy else drafter.sampled_calibration


class Statistics:
    """What rounds, passes and links teach."""

    def __init__(self) -> None:
        self._drafters: dict[str, DrafterState] = {}
        """Those linked the longest ago first."""
        self._linked: set[str] = set()
        self._pass_cost = PassCost()
        self._crowding = ContentionFactor()
        self._bookkeeping_s = {True: 0.0, False: 0.0}
        """Per round of one request, by whether it is plain; smoothed."""
        self._regimes: defaultdict[str, SpeculationSwitch] = defaultdict(SpeculationSwitch)
        """By policy."""
        self._gain = FreshDraftGain()
        self._leads = {True: PromptScoreGain(), False: PromptScoreGain()}
        """By whether the request is greedy."""
        self._rescues = ConditionalAcceptance()
        self._winner = AcceptanceRate(RECORD_MEMORY)
        """The surest of several drafts, at its first token."""
        self._stepping = StepwiseGain()
        self._experience = TextMemory()
        self._at_work: set[RequestState] = set()
        self._num_plans = self._num_opened = 0
        self.num_asked_again = 0
        """Asks that were put once more, since the drafter lacked tokens."""

    def open(self, policy: str, *, is_greedy: bool = True, num_prompt: int = 0) -> RequestState:
        """A request begins; it shares the target's passes with the others that are at work."""
        self._num_opened += 1
        request = RequestState(POLICIES[policy], is_greedy, num_prompt, self._num_opened)
        self._at_work.add(request)
        return request

    def close(self, request: RequestState) -> None:
        """A request has ended; what it taught stays."""
        self._at_work.discard(request)
        self._remember(request)

    def drafter(self, node_id: str) -> DrafterState:
        """What is known of a drafter; a new one is taken up."""
        state = self._drafters.get(node_id)
        if state is None:
            state = self._drafters[node_id] = DrafterState()
        return state

    def welcome(self, node_id: str) -> None:
        """A drafter was linked anew: how slow its former life was says nothing any more."""
        state = self.drafter(node_id)
        state.speed, state.slowest_s = DrafterSpeed(), 0.0
        state.rest = state.back_at = 0
        self._linked.add(node_id)
        self._make_newest(node_id)
        self._forget_some()
        self._reconsider()

    def part(self, node_id: str) -> None:
        """A drafter's link has ended; what it taught stays, while there is room."""
        self._linked.discard(node_id)
        if node_id in self._drafters:
            self._make_newest(node_id)

    def observe_text(self, request: RequestState, tokens: Sequence[int]) -> None:
        """What the request is about now; called with its prompt, and as its text goes on.

        Every so often the text is looked at anew: subjects change in the middle.
        """
        if len(tokens) - request.text_length < SUBJECT_LASTS and request.text is not None:
            return
        if request.text is None:
            request.first_length = len(tokens)
        else:
            request.rates.foreseen_weight /= 2
        self._remember(request)
        request.text, request.text_length = features(tokens), len(tokens)
        request.on_text = RequestRates()
        if request.policy.compares_texts:
            request.rates.expected = self._experience.expect(request.text)

    def observe_pass(self, report: PassReport) -> None:
        """A target pass is over."""
        self._pass_cost.observe(report.num_rows, report.elapsed_s)
        policies = {request.policy.name for request in self._at_work}
        if not report.is_prefill and len(policies) == 1:
            num_requests = len(self._at_work)
            plain_s = self._pass_cost.expected_s(num_requests)
            regimes = self._regimes[policies.pop()]
            regimes.observe(num_requests, report.num_tokens, report.cycle_s, plain_s)

    def observe_answer(
        self,
        node_id: str,
        elapsed_s: float,
        compute_s: float,
        num_tokens: int,
        *,
        is_disturbed: bool = False,
    ) -> None:
        """A drafter answered in time, `num_tokens` deep; `is_disturbed` when others were asked at
        the same moment, or the target was at work."""
        state = self.drafter(node_id)
        state.num_drafted += num_tokens
        state.rest = 0
        state.speed.observe(elapsed_s, compute_s, num_tokens, is_disturbed=is_disturbed)
        expected_s = state.speed.expected_s(PROBE_GAMMA)
        if expected_s < MUCH_QUICKER * state.slowest_s:
            state.slowest_s = expected_s
            self._reconsider()
        state.slowest_s = max(state.slowest_s, expected_s)

    def observe_ahead(self, node_id: str, compute_s: float, num_steps: int) -> None:
        """A drafter answered a question ahead."""
        self.drafter(node_id).speed.observe_ahead(compute_s, num_steps)

    def observe_late(self, node_id: str, waited_s: float) -> None:
        """A drafter did not answer in time; whoever is late again is asked ever less often."""
        state = self.drafter(node_id)
        state.num_late += 1
        state.speed.observe_late(waited_s)
        state.slowest_s = max(state.slowest_s, state.speed.expected_s(PROBE_GAMMA))
        if state.back_at <= self._num_plans:
            state.back_at = self._num_plans + state.rest
            state.rest = min(LONGEST_REST, 2 * state.rest or FIRST_REST)

    def observe_asked_again(self) -> None:
        """A drafter was out of step and is told what it lacks."""
        self.num_asked_again += 1

    def observe_bookkeeping(self, seconds: float, *, is_plain: bool) -> None:
        """A round cost the event loop so much between its verdict and the next work."""
        known_s = self._bookkeeping_s[is_plain] or None
        self._bookkeeping_s[is_plain] = smooth(known_s, seconds, 0.05)

    def observe_wait(self, plan: Plan, waited_s: float) -> None:
        """The drafters of a plan were waited for so long."""
        count = len(plan.drafters)
        self._crowding.observe(count, plan.draft_s / self._crowding.factor(count), waited_s)

    def observe_round(
        self, request: RequestState, plan: Plan, *, was_ready: bool, num_accepted: int
    ) -> None:
        """A round has ended: whether its drafts had been made ahead, and what became of them."""
        request.hidden = smooth(request.hidden, float(was_ready), 0.1)
        request.accepted = smooth(request.accepted, num_accepted)
        if len(self._at_work) > 1 or not request.policy.may_step:
            return
        seconds = request.waited_s + self._pass_cost.expected_s(request.rows)
        if plan.interval and not was_ready:
            request.since_whole += 1
            self._stepping.observe(1 + num_accepted, seconds, plan.speed)
        else:
            request.since_whole = 0
            request.whole.observe(1 + num_accepted, seconds)

    def most_confident(self, request: RequestState, proposals: Sequence[Proposal]) -> Proposal:
        """The proposal whose first token is the surest, by its drafter's word or its record."""
        return self._surest(request, proposals)

    def _surest(self, request: RequestState, proposals: Sequence[Proposal]) -> Proposal:
        return max(proposals, key=lambda proposal: self._surety(request, proposal))

    def _surety(self, request: RequestState, proposal: Proposal) -> float:
        first = proposal.confidences[0]
        if not request.policy.is_calibrated:
            return first
        return request.calibration(self.drafter(proposal.node_id)).probability(first)

    def observe_truth(
        self, request: RequestState, proposals: Sequence[Proposal], committed: Sequence[int]
    ) -> None:
        """The target has committed a text in which drafters had proposed tokens."""
        owned = [own for each in proposals if (own := each.own(committed)) is not None]
        for proposal in owned:
            truth = committed[proposal.prefix_len :]
            hits, misses = proposal.hits_and_misses(truth)
            state = self.drafter(proposal.node_id)
            request.rates.observe(proposal.node_id, hits, misses)
            request.on_text.observe(proposal.node_id, hits, misses)
            state.record.rate.observe(hits, misses)
            if proposal.node_id == request.leader:
                self._leads[request.is_greedy].rate.observe(hits, misses)
            claim = request.rates.claim(proposal.node_id)
            if claim is not None:
                state.record.word.observe(claim, hits, misses)
            self._hear(request, proposal)
            calibration = request.calibration(state)
            for judged in proposal.judged(truth):
                calibration.observe(judged.confidence, is_accepted=judged.is_accepted)
        self._foresee(request)
        if len(owned) > 1:
            self._observe_together(request, owned, committed)

    def _observe_together(
        self, request: RequestState, proposals: Sequence[Proposal], committed: Sequence[int]
    ) -> None:
        """What drafts of the same place say of each other: who is right where another is wrong, and
        whether the surest of them is."""
        at: dict[int, list[Proposal]] = {}
        for proposal in proposals:
            if len(proposal) and len(committed) > proposal.prefix_len:
                at.setdefault(proposal.prefix_len, []).append(proposal)
        for prefix_len, rivals in at.items():
            if len(rivals) > 1:
                winner = self._surest(request, rivals)
                is_right = winner.tokens[0] == committed[prefix_len]
                for rate in (request.winner, self._winner):
                    rate.observe(int(is_right), int(not is_right))
        for one, other in itertools.permutations(proposals, 2):
            if one.prefix_len != other.prefix_len:
                continue
            truth = committed[one.prefix_len :]
            right = one.covers(truth)
            if right < len(truth):
                is_rescued = other.covers(truth) > right
                self._rescues.observe(one.node_id, other.node_id, is_rescued=is_rescued)

    def _hear(self, request: RequestState, proposal: Proposal) -> None:
        """Take in what a drafter says of tokens that it has read for this proposal."""
        top1_matches = proposal.hindsight.top1_matches
        num_answer = max(0, proposal.prefix_len - request.num_prompt)
        of_answer = top1_matches[max(0, len(top1_matches) - num_answer) :]
        if of_answer and request.policy.hears_reports:
            hits = sum(of_answer)
            request.rates.hear(proposal.node_id, hits, len(of_answer) - hits)
        is_whole = len(top1_matches) == min(MAX_SCORED_TOKENS, request.first_length - 1)
        is_of_prompt = is_whole and proposal.prefix_len == request.first_length
        if top1_matches and is_of_prompt and request.policy.scores_prompts:
            request.surprises[proposal.node_id] = proposal.hindsight.nll

    def _foresee(self, request: RequestState) -> None:
        """What the surprises at the prompt let expect, of drafters whose word is good."""
        believed = {
            node_id: surprise
            for node_id, surprise in request.surprises.items()
            if self.drafter(node_id).record.word.is_good
        }
        request.leader = min(believed, key=lambda node_id: believed[node_id], default=None)
        request.rates.foreseen = foresee(believed, self._leads[request.is_greedy].expected)

    def _make_newest(self, node_id: str) -> None:
        self._drafters[node_id] = self._drafters.pop(node_id)

    def _forget_some(self) -> None:
        """Those linked the longest ago make room; of those that are linked nothing is forgotten."""
        excess = max(0, len(self._drafters) - MAX_KNOWN)
        gone = [name for name in self._drafters if name not in self._linked][:excess]
        for node_id in gone:
            del self._drafters[node_id]
            self._rescues.forget(node_id)

    def _reconsider(self) -> None:
        """Where speculation did not pay, it may with drafters as they are now."""
        for regimes in self._regimes.values():
            regimes.reconsider()

    def _remember(self, request: RequestState) -> None:
        if request.text is not None:
            rates = request.on_text.rates.items()
            outcomes = {node_id: (rate.hits, rate.misses) for node_id, rate in rates}
            self._experience.add(request.text, outcomes)
            request.text = None
