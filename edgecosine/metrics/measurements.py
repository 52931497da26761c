"""Counts and times of a target's requests and rounds since it started.

Nothing is recorded per token: a round costs a few additions, a delivery of tokens one or two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from edgecosine.metrics.histogram import Histogram
from edgecosine.protocol.api.result import Answer

MAX_DRAFTERS = 1024
OTHER_DRAFTERS = "other"
"""Counts the drafters beyond `MAX_DRAFTERS` together."""
_GAMMA_BOUNDS = tuple(range(13))


class Measurements:
    """One target's counts; attributes are read when metrics are shown."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.finished: Counter[str] = Counter()
        """Ended choices by finish reason; `abort` if cancelled or expired, `error` if failed."""
        self.first_token_s = Histogram()
        """From acceptance to the first tokens."""
        self.gap_s = Histogram()
        """Between two deliveries of tokens; under speculation one delivery has several."""
        self.token_s = Histogram()
        """Mean of a choice: decode time by the tokens after the first."""
        self.request_s = Histogram()
        """From acceptance to the answer."""
        self.queue_s = Histogram()
        self.prefill_s = Histogram()
        self.decode_s = Histogram()
        self.inference_s = Histogram()
        """Prefill and decode together."""
        self.round_s: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Rounds by part: plan, draft, verify."""
        self.gamma = Histogram(_GAMMA_BOUNDS)
        """Draft length of each round's plan; 0 without drafters."""
        self.num_rounds = 0
        """Verifications of sessions."""
        self.num_drafts = 0
        """Rounds whose tree had nodes."""
        self.num_draft_tokens = 0
        self.accepted_at: list[int] = []
        """Accepted draft tokens by position in their round."""
        self.accepted: Counter[str] = Counter()
        """Accepted draft tokens by drafter; a token of two drafters counts for both."""
        self.proposed: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Measurements [{sum(self.finished.values())} choices ended]>"

    def watch(self, accepted_at: float) -> ChoiceWatch:
        """A stopwatch for a choice whose request was accepted at this moment."""
        return ChoiceWatch(self, accepted_at)

    def count_answer(self, answer: Answer, *, queue_s: float, request_s: float) -> None:
        """Count the answer of one choice; times in seconds."""
        prefill_s, decode_s = answer.metrics.prefill_s, answer.metrics.decode_s
        self.finished[answer.finish_reason] += 1
        self.request_s.observe(request_s)
        self.queue_s.observe(queue_s)
        self.prefill_s.observe(prefill_s)
        self.decode_s.observe(decode_s)
        self.inference_s.observe(prefill_s + decode_s)
        if answer.num_tokens > 1:
            self.token_s.observe(decode_s / (answer.num_tokens - 1))

    def count_failure(self, reason: str) -> None:
        """Count a request that ended without an answer: `abort` or `error`."""
        self.finished[reason] += 1

    def count_round(
        self,
        num_nodes: int,
        num_accepted: int,
        proposed: Mapping[str, int],
        accepted: Mapping[str, int],
    ) -> None:
        """Count a verified tree; `proposed` and `accepted` are tokens by drafter."""
        self.num_rounds += 1
        if not num_nodes:
            return
        self.num_drafts += 1
        self.num_draft_tokens += num_nodes
        self.accepted_at += [0] * (num_accepted - len(self.accepted_at))
        for position in range(num_accepted):
            self.accepted_at[position] += 1
        for drafter, num_tokens in proposed.items():
            name = self._known(drafter)
            self.proposed[name] += num_tokens
            self.accepted[name] += accepted.get(drafter, 0)

    def count_times(self, **parts: float) -> None:
        """Record the seconds of a round's parts."""
        for part, elapsed_s in parts.items():
            self.round_s[part].observe(elapsed_s)

    def rejected(self) -> Mapping[str, int]:
        """Rejected draft tokens by drafter."""
        return {name: number - self.accepted[name] for name, number in self.proposed.items()}

    def _known(self, drafter: str) -> str:
        is_known = drafter in self.proposed or len(self.proposed) < MAX_DRAFTERS
        return drafter if is_known else OTHER_DRAFTERS


class ChoiceWatch:
    """Times the tokens of one choice. Moments are in seconds of the caller's clock."""

    def __init__(self, measurements: Measurements, accepted_at: float) -> None:
        self._measurements, self._last, self._has_tokens = measurements, accepted_at, False

    def deliver(self, num_tokens: int, moment: float) -> None:
        """Count tokens that were delivered together at this moment."""
        measurements = self._measurements
        measurements.num_generated_tokens += num_tokens
        times = measurements.gap_s if self._has_tokens else measurements.first_token_s
        times.observe(moment - self._last)
        self._last, self._has_tokens = moment, True
