"""Switches speculation off where it was measured to be slower than plain decoding.

Plans rest on estimates of drafters and passes. The costs that they leave out (the target's own
bookkeeping, drafters that share a machine, requests that miss a pass) show in the tokens committed
per second of the target's time. Where speculation commits fewer of them than plain decoding, or
hardly any of them are drafters' tokens, it is switched off, and tried ever less often, or when
drafters change, while trials are affordable. For a single request `trials` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MEMORY = 0.98
"""Weight of earlier passes at each new one."""
PROBE_PASSES = 16
"""Passes of speculation after which it is judged, and of plain decoding to compare it with."""
FIRST_STRETCH = 256
"""Speculative passes after a trial that was better, before plain decoding is measured again if it
may be better: the machine's other load changes. Doubled each time."""
FEWEST_PASSES, CLEARLY, CLEARLY_OF_FEW = 6, 0.8, 0.6
"""Passes after which it is judged early, if below this share of plain decoding's speed: the latter
for up to FEW_REQUESTS, whose passes differ much."""
FEW_REQUESTS = 8
FIRST_REST = 64
LONGEST_REST = 4096
"""Most plain passes between two probes."""
TRIAL_SHARE = 0.01
"""Share of the throughput that probes may cost."""
FIRST_TRIAL_COST, LEAST_TRIAL_COST = 4.0, 0.5
"""Expected cost of a probe before the first one, and its least cost, in plain passes."""
LARGEST_CREDIT = TRIAL_SHARE * LONGEST_REST
LEAST = 0.98
"""Share of plain decoding's speed below which speculation is switched off."""
LEAST_GAIN = 1.05
"""Speculation is switched off if its tokens, over those that plain decoding commits in the same
passes, are below this: with few accepted drafts it has only costs, which noise hides."""
_MIXED_PASSES = 2
"""Passes after a change in which plain and speculative rounds mix."""
_FIRST_DRAFTS = 8
"""Most passes after them that are not judged while no draft was accepted: requests wait for their
first drafts, whose tokens come later. A trial is charged for them."""


@dataclass(slots=True)
class Speed:
    """Tokens per second over the last passes."""

    tokens: float = 0.0
    seconds: float = 0.0
    num_passes: int = 0
    accepted: float = 0.0
    """Draft tokens among `tokens`."""

    def observe(self, tokens: float, seconds: float, accepted: float = 0.0) -> None:
        """Learn from one pass."""
        self.tokens = MEMORY * self.tokens + tokens
        self.seconds = MEMORY * self.seconds + seconds
        self.accepted = MEMORY * self.accepted + accepted
        self.num_passes += 1

    @property
    def per_s(self) -> float:
        """0 before the first pass."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def gains(self) -> bool:
        """Whether drafts add tokens worth mentioning."""
        return self.tokens >= LEAST_GAIN * (self.tokens - self.accepted)


@dataclass(slots=True)
class _Size:
    """Measurements with one number of active requests."""

    num_requests: int
    is_plain: bool = False
    waiting: Speed = field(default_factory=Speed)
    """Before the first accepted draft since the last change."""
    speculating: Speed = field(default_factory=Speed)
    plain: Speed = field(default_factory=Speed)
    """Since the last change."""
    plain_per_s: float = 0.0
    """Of the last plain passes; 0 before any."""
    stretch: int = PROBE_PASSES
    """Speculative passes after which plain decoding is measured, if it may be better."""
    rest: int = FIRST_REST
    num_passes: int = _MIXED_PASSES
    """Since the last change; none comes before the first pass."""
    credit: float = 0.0
    """Plain passes that trials may cost now."""
    trial_cost: float = FIRST_TRIAL_COST
    """What the last trial cost, in plain passes."""
    has_better_drafters: bool = False
    """Whether drafters have become better since speculation was switched off."""
    has_new_drafter: bool = False
    """Whether one of them is new, whose trial need not be affordable."""
    patience: int = 0
    """Plain passes before better drafters lead to a trial; doubled each time, since some drafters
    are quick whenever they are idle."""

    def reconsider(self, *, has_new_drafter: bool = False) -> None:
        self.has_new_drafter = self.has_new_drafter or has_new_drafter
        self.has_better_drafters = self.is_plain
        is_affordable = self.has_new_drafter or self.credit >= self.trial_cost
        if self.has_better_drafters and is_affordable and self.num_passes >= self.patience:
            self.patience = min(LONGEST_REST, 2 * self.patience or FIRST_REST)
            self.speculate(PROBE_PASSES)

    def speculate(self, stretch: int) -> None:
        self.waiting, self.speculating, self.stretch = Speed(), Speed(), stretch
        self._change(is_plain=False)

    def decode_plainly(self) -> None:
        self.plain = Speed()
        self._change(is_plain=True)

    def _change(self, *, is_plain: bool) -> None:
        self.is_plain, self.num_passes = is_plain, 0
        self.has_better_drafters = self.has_new_drafter = False

    def observe(self, tokens: float, accepted: float, cycle_s: float, plain_per_s: float) -> None:
        self.num_passes += 1
        if self.num_passes <= _MIXED_PASSES:
            return
        if self.is_plain:
            self._observe_plain(tokens, cycle_s)
            return
        if self._waits_for_first_drafts(accepted):
            self.waiting.observe(tokens, cycle_s)
            return
        self.speculating.observe(tokens, cycle_s, accepted)
        num_passes = self.speculating.num_passes
        if num_passes < FEWEST_PASSES:
            return
        is_judged = num_passes >= PROBE_PASSES
        clearly = CLEARLY_OF_FEW if self.num_requests <= FEW_REQUESTS else CLEARLY
        least = (LEAST if is_judged else clearly) * (self.plain_per_s or plain_per_s)
        is_worse = self.speculating.per_s < least or (is_judged and not self.speculating.gains)
        # Pass times alone bound the speed of plain decoding, and follow the machine's load.
        is_certain = self.speculating.per_s >= plain_per_s
        if is_worse or (num_passes >= self.stretch and not is_certain):
            self.decode_plainly()
        elif num_passes > 2 * PROBE_PASSES:
            self.rest, self.patience, self.credit = FIRST_REST, 0, LARGEST_CREDIT

    def _waits_for_first_drafts(self, accepted: float) -> bool:
        is_early = self.num_passes <= _MIXED_PASSES + _FIRST_DRAFTS
        is_few = self.num_requests <= FEW_REQUESTS
        return is_few and is_early and not accepted and not self.speculating.num_passes

    def _observe_plain(self, tokens: float, cycle_s: float) -> None:
        self.plain.observe(tokens, cycle_s)
        if self.num_passes >= PROBE_PASSES:
            self.plain_per_s = self.plain.per_s
        self.credit = min(LARGEST_CREDIT, self.credit + TRIAL_SHARE)
        if self.num_passes == PROBE_PASSES and self.speculating.num_passes:
            self._settle_trial()
        is_affordable = self.credit >= self.trial_cost and self.num_passes >= self.rest
        if is_affordable or self.num_passes >= LONGEST_REST:
            self.speculate(PROBE_PASSES)
            self.rest = min(LONGEST_REST, 2 * self.rest)
        elif self.has_better_drafters:
            self.reconsider()

    def _settle_trial(self) -> None:
        """Charge the trial that has ended, after plain decoding was measured for comparison. If the
        trial was better, speculation goes on. Its cost is bounded, since a pass may be long for
        other reasons."""
        tokens = self.waiting.tokens + self.speculating.tokens
        seconds = self.waiting.seconds + self.speculating.seconds
        cost = (seconds * self.plain_per_s - tokens) / self.num_requests
        self.trial_cost = min(PROBE_PASSES, max(LEAST_TRIAL_COST, cost))
        self.credit -= self.trial_cost
        if cost < 0.0 and self.speculating.gains:
            self.speculate(min(LONGEST_REST, max(FIRST_STRETCH, 2 * self.stretch)))


class SpeculationSwitch:
    """Whether to speculate, by the number of active requests."""

    def __init__(self, promises: Callable[[int], bool] = lambda _: True) -> None:
        """`promises` returns whether good drafts would pay for this many requests, by the times of
        passes; if they would not, the first trial comes after plain passes."""
        self._sizes: dict[int, _Size] = {}
        self._promises = promises

    def speculates(self, num_requests: int) -> bool:
        """Whether requests should speculate while `num_requests` are active.

        A number without measurements follows the nearest one that is at most twice as large.
        """
        return num_requests == 1 or not self._size(num_requests).is_plain

    def observe(
        self, num_requests: int, tokens: float, accepted: float, cycle_s: float, plain_pass_s: float
    ) -> None:
        """Learn from a pass that committed `tokens`, `accepted` of them from drafts, and ended
        `cycle_s` after the previous one.

        `plain_pass_s` is the expected time of a pass with one row for each request.
        """
        if num_requests < 2:
            return
        plain_per_s = num_requests / plain_pass_s if plain_pass_s else 0.0
        self._size(num_requests).observe(tokens, accepted, cycle_s, plain_per_s)

    def reconsider(self, *, has_new_drafter: bool = False) -> None:
        """Probe speculation before its rest ends, since drafters have become better."""
        for size in self._sizes.values():
            size.reconsider(has_new_drafter=has_new_drafter)

    def reason(self, num_requests: int) -> str:
        """The measured speeds; without any, that plans did not pay."""
        size = self._size(num_requests)
        if not size.speculating.num_passes:
            return "no plan paid lately"
        measured = f"{size.speculating.per_s:.0f} tokens/s speculating, {size.plain_per_s:.0f} not"
        return f"{measured}, for {num_requests} requests"

    def _size(self, num_requests: int) -> _Size:
        bucket = num_requests if num_requests <= 8 else 1 << (num_requests - 1).bit_length()
        size = self._sizes.get(bucket)
        if size is None:
            size = self._sizes[bucket] = _Size(num_requests)
            alike = [known for known in self._sizes if known <= 2 * bucket and known != bucket]
            nearest = min(alike, key=lambda known: abs(known - bucket), default=None)
            if nearest is not None:
                size.is_plain = self._sizes[nearest].is_plain
                size.trial_cost = self._sizes[nearest].trial_cost
            size.is_plain = size.is_plain or not self._promises(num_requests)
        return size
