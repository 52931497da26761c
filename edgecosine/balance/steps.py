"""Whether a round's drafts are fused once, when they are whole, or step by step.

Step by step (CoSine, section 4.3) drafters say `interval` tokens, the surest of them becomes the
next piece of a common trunk, and all go on from there. The trunk is right more often than any
drafter alone where drafters take turns in being right, and each step costs an exchange. What the
surest is worth is learned from every round with several drafts; what a round step by step is worth
is believed only as far as it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.balance.plan import MAX_GAMMA
from edgecosine.balance.speculation_switch import Speed

INTERVALS = (1, 2, 3, 4, 6)
MUCH_SURER = 0.05
"""By so much the surest of several drafts must be right more often than the best drafter."""
WORTH_STEPPING = 1.05
"""A round is made step by step where that gives so many times the tokens per second."""
ENOUGH_ROUNDS = 6
"""Rounds of a request, fused once, that its rounds step by step are compared with."""
WHOLE_EVERY = 16
"""One round in so many is fused once all the same, so that what that gives is still known."""
TRIAL_ROUNDS = 4
WORTH_TRYING = 1.3
"""It is tried where it looks so much better: estimates are not kept to the full."""
FIRST_REST = 64
LONGEST_REST = 1024
"""Rounds that look worth a trial and are none, at most, between two trials."""


@dataclass(frozen=True, slots=True)
class DrafterTeam:
    """The drafters of a plan: `winner_rate` is how often the surest of them is right at the first
    token of a piece, `rate` how often its further ones are; `exchange_s` and `token_s` are what
    they take together for each piece, and for each token of it."""

    size: int
    winner_rate: float
    rate: float
    exchange_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class StepwisePlan:
    """A round step by step, and the tokens per second that are expected of it."""

    interval: int
    gamma: int
    draft_s: float
    speed: float


def best_steps(
    team: DrafterTeam, pass_s: Sequence[float], room: int, bookkeeping_s: float = 0.0
) -> StepwisePlan | None:
    """The interval and the length with the most tokens per second; of a single request, alone in
    its passes. None where there is no room for two pieces.

    pass_s[rows] is the expected time of a pass (index 0 unused). Those who lose stay as siblings,
    so that there are about as many rows as in a union.
    """
    best: StepwisePlan | None = None
    most = min(MAX_GAMMA, room - 1, len(pass_s) - 2)
    for interval in INTERVALS:
        tokens, reach, draft_s = 1.0, 1.0, 0.0
        for gamma in range(1, most + 1):
            is_first = (gamma - 1) % interval == 0
            reach *= team.winner_rate if is_first else team.rate
            tokens += reach
            draft_s += team.token_s + team.exchange_s * is_first
            if gamma <= interval:
                continue
            rows = min(1 + gamma + (team.size - 1) * (gamma + 1) // 2, len(pass_s) - 1)
            round_s = draft_s + pass_s[rows] + bookkeeping_s
            speed = tokens / round_s if round_s > 0.0 else 0.0
            if best is None or speed > best.speed:
                best = StepwisePlan(interval, gamma, draft_s, speed)
    return best


def explain(steps: StepwisePlan, team: DrafterTeam, whole: float) -> str:
    """Why a round is made step by step."""
    return (
        f"K={steps.gamma} fused every {steps.interval}: rtt+wait {1e3 * team.exchange_s:.1f} ms, "
        f"t_d {1e3 * team.token_s:.1f} ms, acceptance of the surest {team.winner_rate:.2f}; "
        f"{steps.speed:.0f} tokens/s expected, {whole:.0f} fused once"
    )


@dataclass(slots=True)
class StepwiseGain:
    """Whether rounds step by step keep what is expected of them, and when that is tried."""

    measured: Speed = field(default_factory=Speed)
    """Tokens that came, over those that were expected in the same time."""
    rest: int = FIRST_REST
    waited: int = 0

    @property
    def trust(self) -> float:
        """Measured over expected tokens per second."""
        return self.measured.per_s

    def wants(self, expected: float, whole: Speed) -> bool:
        """Whether to go step by step: where it was measured to be better than rounds fused once,
        or where it looks better and a trial is due. Called once for each round."""
        if whole.num_passes < ENOUGH_ROUNDS or expected <= WORTH_STEPPING * whole.per_s:
            return False
        if 0 < self.measured.num_passes < TRIAL_ROUNDS:
            return True
        if self.measured.num_passes and self.trust * expected > WORTH_STEPPING * whole.per_s:
            self.rest, self.waited = FIRST_REST, 0
            return True
        if expected <= WORTH_TRYING * whole.per_s:
            return False
        self.waited += 1
        if self.measured.num_passes and self.waited <= self.rest:
            return False
        if self.measured.num_passes:
            self.rest = min(LONGEST_REST, 2 * self.rest)
        self.measured, self.waited = Speed(), 0
        return True

    def observe(self, tokens: int, seconds: float, expected: float) -> None:
        """A round step by step gave so many tokens, where `expected` a second were expected."""
        self.measured.observe(tokens, seconds * expected)
