"""Measurements of drafters, forward passes and active requests, and the estimates from them.

All calls are synchronous and quick.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from edgecosine.balance.acceptance_statistics import AcceptanceStatistics
from edgecosine.balance.batch_wait import ExpectedArrival, batch_wait_s
from edgecosine.balance.contention import Contention
from edgecosine.balance.cost_model import PassCost, PassReport, smooth
from edgecosine.balance.drafter_table import SHORTLIST, DrafterState, DrafterTable
from edgecosine.balance.fresh_draft_gain import FreshDraftGain
from edgecosine.balance.plan import (
    MAX_NODES,
    PROBE_GAMMA,
    CoBatchedRequests,
    expected_tokens,
)
from edgecosine.balance.policy import Policy, find_policy
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.speculation_switch import SpeculationSwitch
from edgecosine.balance.trials import PlainRound, TrialBudget
from edgecosine.fusion.ngram_table import NgramTable

GOOD_RATE, WORTH_TRYING = 0.8, 1.1
"""Acceptance rate of drafts, and their speed-up in passes alone, for which they are tried at
once."""
BOOKKEEPING_SHARE, FORGOTTEN_SHARE = 0.05, 0.01
"""Weights of a round's time outside of passes and waits: of one more, and, for speculative rounds,
of each plain round in which none was measured."""

_MOST_READING = 0.5
"""Share of a pass in which prompts are read, up to which it measures decoding."""


class Statistics:
    """Observes the node's events; plans are made from its estimates."""

    def __init__(self, ngrams: NgramTable | None = None) -> None:
        """`ngrams` are known at first, of earlier texts of the same target."""
        self.drafters = DrafterTable()
        self.acceptance = AcceptanceStatistics(self.drafters)
        self.fresh_draft_gain = FreshDraftGain()
        self.contention = Contention()
        self._pass_cost = PassCost()
        self._bookkeeping_s = {True: 0.0, False: 0.0}
        """Per round of one request, by whether it is plain; smoothed."""
        self._switches = defaultdict[str, SpeculationSwitch](
            lambda: SpeculationSwitch(self._promises)
        )
        """By policy."""
        self._plain_round = PlainRound()
        self._budgets = defaultdict[str, TrialBudget](lambda: TrialBudget(self._plain_round))
        """By policy."""
        self._ngrams = defaultdict[str, NgramTable](ngrams.copy if ngrams else NgramTable)
        """By policy."""
        self._active: set[RequestState] = set()
        self._policies: Counter[str] = Counter()
        """Active requests by policy."""
        self._rows, self._tokens = 0, 0.0
        """Of all active requests' last trees."""
        self._num_plans = self._num_opened = 0
        self.busy_share = 0.5
        """Share of the last cycles in which a pass ran, smoothed."""
        self.num_retries = 0
        """Draft requests sent again because the drafter lacked tokens."""

    def open(self, policy: str, *, is_greedy: bool = True, num_prompt: int = 0) -> RequestState:
        """Add an active request, which shares forward passes with the others."""
        self._num_opened += 1
        found = find_policy(policy)
        assert found is not None, "the policy is checked before its request runs"
        request = RequestState(found, is_greedy, num_prompt, self._num_opened)
        self._active.add(request)
        self._policies[found.name] += 1
        self._rows += request.rows
        self._tokens += request.tokens
        return request

    def close(self, request: RequestState) -> None:
        """Remove a request that has ended; the evidence from it stays."""
        self.set_size(request, 0, 0.0)
        self._active.remove(request)
        if not self._active:
            self._tokens = 0.0  # without the rounding errors of the sum
        self._policies -= Counter([request.policy.name])

    def set_size(self, request: RequestState, rows: int, tokens: float) -> None:
        """Set the rows of a request's tree, including its root, and the tokens expected of it;
        plans of other requests expect the same in their next pass."""
        if request in self._active:
            self._rows += rows - request.rows
            self._tokens += tokens - request.tokens
        request.rows, request.tokens = rows, tokens

    @property
    def active(self) -> Iterable[RequestState]:
        """The active requests."""
        return self._active

    @property
    def num_active(self) -> int:
        """Number of active requests."""
        return len(self._active)

    def drafter(self, node_id: str) -> DrafterState:
        """The state of a drafter, which is created if there is none."""
        return self.drafters.get(node_id)

    def patience_s(self, drafters: Iterable[str]) -> float:
        """Seconds to wait for drafts ahead of these drafters after the verification result: the
        time that a fresh draft would take."""
        speeds = [self.drafter(node_id).speed for node_id in drafters]
        return max((speed.overhead_s or 0.0 for speed in speeds), default=0.0)

    def hosts(self, drafters: Iterable[str]) -> set[str]:
        """The known machines of drafters."""
        return {self.drafters.get(node_id).host for node_id in drafters} - {""}

    def available(self, drafters: Iterable[str]) -> list[str]:
        """The drafters that do not rest after late answers, sorted."""
        return self.drafters.available(drafters, self._num_plans)

    def shortlist(self, request: RequestState, drafters: Collection[str]) -> Collection[str]:
        """The drafters that are compared for a request: all if there are few, otherwise the best
        known ones and some with little evidence."""
        if len(drafters) <= SHORTLIST:
            return drafters
        names = self.drafters.shortlist(request, self._num_plans)
        return [node_id for node_id in names if node_id in drafters]

    def add_link(self, node_id: str, host: str = "", *, is_beside: bool = False) -> None:
        """A drafter of the machine `host` was linked, maybe as a new process: its former speed does
        not count. `is_beside`: it is the target's own machine."""
        self.drafters.add_link(node_id, host)
        (self.contention.add if is_beside else self.contention.remove)(node_id)
        self._reconsider(has_new_drafter=True)

    def remove_link(self, node_id: str) -> None:
        """A drafter's link has ended; the evidence about it stays while there is room."""
        self.drafters.remove_link(node_id)
        self.contention.remove(node_id)

    def count_plan(self) -> None:
        """Count a plan; the rests of late drafters are measured in plans."""
        self._num_plans += 1

    def speculates(self, request: RequestState) -> bool:
        """Whether the request's policy should speculate with the present number of requests."""
        if not request.policy.is_adaptive:
            return True
        return self._switches[request.policy.name].speculates(self.num_active)

    def budget(self, request: RequestState) -> TrialBudget | None:
        """The budget of trials, if the request is alone and its policy adapts to measurements."""
        if len(self._active) > 1 or not request.policy.is_adaptive:
            return None
        return self._budgets[request.policy.name]

    def ngrams(self, policy: Policy) -> NgramTable:
        """The n-grams of the policy's answers, and of those known at first."""
        return self._ngrams[policy.name]

    def why_plain(self, policy: Policy) -> str:
        """The reason of plain rounds: the measured speeds that `speculates` rests on."""
        if policy.baseline is not None:
            return f"K=0: {policy.name}"
        return f"K=0: {self._switches[policy.name].reason(self.num_active)}"

    def _promises(self, num_requests: int) -> bool:
        """Whether good drafts of this many requests would pay, by the times of passes alone."""
        plain_s = self._pass_cost.expected_s(num_requests)
        return not plain_s or any(
            expected_tokens(GOOD_RATE, gamma) * plain_s
            > WORTH_TRYING * self._pass_cost.expected_s(num_requests * (1 + gamma))
            for gamma in range(1, PROBE_GAMMA + 1)
        )

    def co_batched(self, request: RequestState) -> CoBatchedRequests:
        """The other requests of the next pass, as they were in their last pass."""
        is_active = request in self._active
        return CoBatchedRequests(
            requests=self.num_active - is_active,
            rows=self._rows - request.rows * is_active,
            tokens=max(0.0, self._tokens - request.tokens * is_active),
            bookkeeping_s=self.num_active * self._bookkeeping_s[False],
        )

    def pass_times(self, co_batched: CoBatchedRequests) -> list[float]:
        """Expected times of a pass with these requests, by the rows that one more request adds."""
        return self._pass_cost.span(co_batched.rows, MAX_NODES + 2)

    def plain_speed(self, co_batched: CoBatchedRequests) -> float:
        """Tokens per second of a pass in which no request has drafts; 0 before a measurement.

        Where rows are expensive each request's drafts may pay beside those of the others, although
        all requests would be served sooner without drafts.
        """
        size = co_batched.requests + 1
        pass_s = self._pass_cost.expected_s(size)
        return size / (pass_s + size * self._bookkeeping_s[True]) if pass_s > 0.0 else 0.0

    @property
    def plain_bookkeeping_s(self) -> float:
        """Time in the event loop per plain round of one request."""
        return self._bookkeeping_s[True]

    def pass_s(self, num_rows: int) -> float:
        """Expected time of a pass."""
        return self._pass_cost.expected_s(num_rows)

    def worked_beside_s(self, moment: float) -> float:
        """Time until now in which drafters of the target's own machine had work."""
        return self.contention.worked_s(moment)

    def batch_wait_s(self, num_rows: int, arrivals: Sequence[ExpectedArrival]) -> float | None:
        """How long to delay a pass of `num_rows` rows for expected arrivals; None to start it."""
        most = num_rows + sum(arrival.rows for arrival in arrivals)
        return batch_wait_s(num_rows, arrivals, self._pass_cost.span(0, most + 1).__getitem__)

    def observe_pass(self, report: PassReport) -> None:
        """Learn from a forward pass."""
        without_s = self._pass_cost.expected_s(report.num_rows)
        delay_s = self.contention.observe(report.elapsed_s, report.beside_s, without_s)
        self._pass_cost.observe(report.num_rows, report.elapsed_s - delay_s)
        if report.cycle_s > 0.0:
            self.busy_share = smooth(self.busy_share, report.elapsed_s / report.cycle_s)
        num_requests, expected_s = len(self._active), self._pass_cost.expected_s
        num_decoding = report.num_rows - report.num_prompt_rows
        reading_s = expected_s(report.num_rows) - expected_s(num_decoding)
        # Many requests read prompts in nearly every pass, which then measures decoding as well.
        is_decoding = report.num_tokens and reading_s <= _MOST_READING * report.elapsed_s
        if is_decoding and len(self._policies) == 1:
            [policy] = self._policies
            share = 1.0
            if report.num_prompt_rows:
                # Requests whose prompts are being read would decode as the others do.
                share = (report.num_tokens - report.num_accepted) / num_requests
            self._switches[policy].observe(
                num_requests,
                report.num_tokens / share,
                report.num_accepted / share,
                report.cycle_s - reading_s,
                expected_s(num_requests),
            )

    def observe_answer(
        self,
        node_id: str,
        elapsed_s: float,
        compute_s: float,
        num_tokens: int,
        num_steps: int | None = None,
        *,
        is_disturbed: bool = False,
    ) -> None:
        """Learn from a draft of `num_tokens` in time, for which its drafter made `num_steps` (None:
        unknown); `is_disturbed` if other drafters or the target computed at the same time."""
        state = self.drafters.get(node_id)
        if state.observe_answer(
            elapsed_s, compute_s, num_tokens, num_steps, is_disturbed=is_disturbed
        ):
            self._reconsider()

    def observe_ahead(
        self, node_id: str, elapsed_s: float, compute_s: float, num_steps: int
    ) -> None:
        """Learn from a draft ahead."""
        self.drafters.get(node_id).speed.observe_ahead(elapsed_s, compute_s, num_steps)

    def observe_ahead_late(self, node_id: str) -> None:
        """A draft ahead was not there when its round began."""
        self.drafters.get(node_id).speed.observe_ahead_late()

    def observe_late(self, node_id: str, waited_s: float) -> None:
        """Learn from a missed deadline; a drafter that is late repeatedly rests ever longer."""
        self.drafters.get(node_id).observe_late(waited_s, self._num_plans)

    def observe_retry(self) -> None:
        """A draft request is sent again, with the tokens that the drafter lacked."""
        self.num_retries += 1

    def observe_bookkeeping(self, seconds: float, *, is_plain: bool) -> None:
        """Learn the time of a round outside of passes and waits for drafts: in the event loop, and,
        of a request that is alone, between the loop and the engine."""
        times_s = self._bookkeeping_s
        times_s[is_plain] = smooth(times_s[is_plain], seconds, BOOKKEEPING_SHARE)
        if is_plain:
            # Too high a time of speculative rounds would prevent the rounds that correct it.
            lowest_s = min(times_s.values())
            times_s[False] = smooth(times_s[False], lowest_s, FORGOTTEN_SHARE)

    def observe_lone_round(
        self,
        request: RequestState,
        num_tokens: int,
        round_s: float,
        *,
        is_quiet: bool,
        is_plain: bool = True,
    ) -> None:
        """Learn from a round of a request what trials cost; `is_quiet` if no drafter worked for it
        or beside it, `is_plain` if it had no draft at all. Rounds beside other requests say nothing
        of it."""
        if len(self._active) > 1:
            return
        self._plain_round.estimated_s = self._pass_cost.expected_s(1) + self._bookkeeping_s[True]
        if is_quiet and is_plain:
            self._plain_round.observe(round_s)
        budget = self.budget(request)
        if budget is None:
            return
        if is_quiet:
            budget.observe_plain(request.trial)
        else:
            budget.observe_trial(request.trial, num_tokens, round_s)

    def observe_round(
        self,
        request: RequestState,
        *,
        waited_s: float,
        was_ready: bool,
        num_accepted: int,
        round_s: float = 0.0,
    ) -> None:
        """Learn from a round: whether its drafts were made ahead, the seconds for which it waited
        for drafts, the number of accepted draft tokens, and its whole duration."""
        request.overlap = smooth(request.overlap, float(was_ready), 0.1)
        request.accepted = smooth(request.accepted, num_accepted)
        seconds = waited_s + self._pass_cost.expected_s(request.rows)
        request.pace.observe(1 + num_accepted, max(seconds, round_s))

    def _reconsider(self, *, has_new_drafter: bool = False) -> None:
        """Drafters have become better: speculation may pay where it did not."""
        for switch in self._switches.values():
            switch.reconsider(has_new_drafter=has_new_drafter)
        for budget in self._budgets.values():
            budget.reconsider(has_new_drafter=has_new_drafter)
        for request in self._active:
            request.trial.reconsider()
