"""Whether a request that is alone speculates: while that was measured to be faster than plain
decoding, or while trials of it are affordable.

Estimates leave out costs: drafters that slow the target's passes down, late drafts, the event loop.
So a round with drafts, or beside drafts, is compared with the plain rounds of lone requests, times
the speed of the target's own drafts: what it took longer than its tokens would have taken
then is the price of a trial, what it saved is earned. Besides, a share of all rounds without
drafters may be spent on trials, as in conservative bandits (Wu et al., 2016). Units are tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgecosine.balance.cost_model import smooth
from edgecosine.balance.speculation_switch import Speed

TRIAL_SHARE, LEAST_SHARE = 0.01, 0.002
"""Shares of the rounds that trials may cost: at first, and while they were all in vain."""
FIRST_CREDIT, LARGEST_CREDIT = 8.0, 32.0
"""Gains on one subject pay for few trials on another."""
LARGEST_DEBT = 2.0
PROBE_PRICE, LARGEST_PRICE = 1.0, 4.0
"""Credit for which a drafter is asked to read a request's text: more, if trials cost more. With the
largest debt it is there after 3,000 rounds at LEAST_SHARE: a trial costs up to twenty rounds, so
one in 3,000 is still within a hundredth, and drafters that have become quicker are found."""
LARGEST_LOSS = 4.0
"""Most that one round is charged: it may be long for other reasons."""
REQUEST_SHARE, REQUEST_LOSS = 0.01, 1.0
"""Most that trials may cost a request: a share of its tokens, and some rounds."""
CERTAIN_LOSS = 6.0
"""Rounds that a request may lose by plans that its text made certain to pay; less, as trials get
less, after requests that lost by them."""
FEWEST_ROUNDS, CLEARLY = 6, 0.8
"""Rounds after which speculation is judged early, if below this share of plain decoding's speed."""
ENOUGH_ROUNDS = 16
FIRST_REST, LONGEST_REST = 16, 256
"""Plain rounds of a request after speculation that was slower; doubled each time."""
LONGEST_STRETCH = 64
"""Most plain rounds before it is planned again whether drafts pay, though nothing has changed."""
_PLAIN_SHARE, _PRICE_SHARE = 0.05, 0.5


@dataclass(slots=True)
class Trial:
    """What speculation has cost one request."""

    plain_left: int = 0
    """Plain rounds before the next plan, unless there is new evidence."""
    stretch: int = 1
    rest_left: int = 0
    """Plain rounds before the next plan in any case."""
    rest: int = FIRST_REST
    lost: float = 0.0
    num_rounds: int = 0
    local_speedup: float = 1.0
    """Speed of the target's own drafts over plain decoding, by what the last rounds committed."""

    @property
    def is_plain(self) -> bool:
        """Whether rounds are plain without a plan."""
        return self.plain_left > 0 or self.rest_left > 0

    def count_plain(self) -> None:
        """One of these rounds begins."""
        self.plain_left = max(0, self.plain_left - 1)
        self.rest_left = max(0, self.rest_left - 1)

    def stretch_out(self) -> None:
        """No plan pays: ever more plain rounds before the next one."""
        self.plain_left, self.stretch = self.stretch, min(LONGEST_STRETCH, 2 * self.stretch)

    def begin_rest(self) -> None:
        """Speculation was slower."""
        self.rest_left, self.rest = self.rest, min(LONGEST_REST, 2 * self.rest)

    def reconsider(self) -> None:
        """There is new evidence."""
        self.plain_left, self.stretch = 0, 1


@dataclass(slots=True)
class PlainRound:
    """Seconds of a lone request's plain round beside which no drafter works."""

    measured_s: float = 0.0
    """0 before a measurement."""
    estimated_s: float = 0.0
    """By the times of passes and of the event loop."""

    @property
    def seconds(self) -> float:
        """The measured time, else the estimate; 0 before either."""
        return self.measured_s or self.estimated_s

    def observe(self, seconds: float) -> None:
        """Learn from one round."""
        self.measured_s = smooth(self.measured_s or None, seconds, _PLAIN_SHARE)


class TrialBudget:
    """What trials of lone requests may cost, over all requests; `plain` is the same for all
    policies."""

    def __init__(self, plain: PlainRound) -> None:
        self._plain = plain
        self.credit = FIRST_CREDIT
        self.share = TRIAL_SHARE
        self.price = PROBE_PRICE
        """What trials cost from their first round to the next one without, smoothed: a drafter that
        reads a text slows the target's passes."""
        self._cost: float | None = None
        """Of the trials that are going on."""

    def __repr__(self) -> str:
        return f"<TrialBudget [{self.credit:.1f} rounds]>"

    @property
    def num_probes(self) -> int:
        """Drafters that may be asked to read a text now."""
        return max(0, int(self.credit / self.price))

    def observe_plain(self, trial: Trial) -> None:
        """A round without drafters, beside which none worked."""
        trial.num_rounds += 1
        if self._cost is not None:
            price = smooth(self.price, self._cost, _PRICE_SHARE)
            self.price, self._cost = min(LARGEST_PRICE, max(PROBE_PRICE, price)), None
        self._add(self.share)

    def observe_trial(self, trial: Trial, num_tokens: int, round_s: float) -> None:
        """Charge or credit a round with drafts, or beside drafts; not before passes were timed."""
        trial.num_rounds += 1
        if self._plain.seconds:
            without = trial.local_speedup * round_s / self._plain.seconds
            gain = max(-LARGEST_LOSS, num_tokens - without)
            former, trial.lost = trial.lost, max(0.0, trial.lost - gain)
            if former < REQUEST_LOSS <= trial.lost:
                self.share = max(LEAST_SHARE, self.share / 2)
            self._cost = (self._cost or 0.0) - gain
            self._add(self.share * num_tokens + gain)

    def settle(self, trial: Trial, pace: Speed) -> bool | None:
        """Whether a request's speculation at this pace is faster than without drafters; None if it
        is not known yet."""
        if not self._plain.seconds or pace.num_passes < FEWEST_ROUNDS:
            return None
        speedup = pace.per_s * self._plain.seconds / trial.local_speedup
        if speedup < CLEARLY:
            return False
        return speedup >= 1.0 if pace.num_passes >= ENOUGH_ROUNDS else None

    def why_plain(
        self,
        trial: Trial,
        pace: Speed,
        room: int,
        drafters: Sequence[str],
        is_certain: Callable[[], bool],
    ) -> str | None:
        """Why a request with `room` tokens left decodes plainly instead of with these drafters,
        which gave it `pace` so far; empty without drafters, None if it may follow the plan."""
        if not drafters:
            trial.stretch_out()
            return ""
        if trial.rest_left:
            return "at rest"
        is_faster = self.settle(trial, pace)
        if is_faster:
            self.reconsider()
            return None
        if is_faster is False:
            trial.begin_rest()
            return f"measured to be slower, {pace.per_s:.0f} tokens/s"
        allowed = CERTAIN_LOSS * self.share / TRIAL_SHARE
        if self.affords(trial, room) or (trial.lost < allowed and is_certain()):
            return None
        trial.stretch_out()
        return "trials are used up"

    def affords(self, trial: Trial, room: int) -> bool:
        """Whether a request with `room` tokens left may speculate although it may be slower."""
        allowed = REQUEST_LOSS + REQUEST_SHARE * (trial.num_rounds + room)
        return self.credit > 0.0 and trial.lost < allowed

    def reconsider(self, *, has_new_drafter: bool = False) -> None:
        """Drafters have changed, or speculation was faster."""
        self.share = TRIAL_SHARE
        if has_new_drafter:
            self.price = PROBE_PRICE
        self.credit = max(self.credit, PROBE_PRICE)

    def _add(self, amount: float) -> None:
        self.credit = min(LARGEST_CREDIT, max(-LARGEST_DEBT, self.credit + amount))
