"""Whether a round's drafts are fused once, when they are complete, or step by step.

Step by step (CoSine, section 4.3) drafters draft `interval` tokens, the most confident draft
becomes the next piece of a common trunk, and all drafters continue from it. Where drafters are
right in turns, the trunk is right more often than any one of them; each step costs an exchange. How
often the most confident draft is right is learned from every round with several drafts. The
expected speed of a round step by step counts only as far as it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.balance.plan import MAX_GAMMA
from edgecosine.balance.speculation_switch import Speed

INTERVALS = (1, 2, 3, 4, 6)
MORE_CONFIDENT = 0.05
"""Least advantage in acceptance rate of the most confident draft over the best drafter."""
WORTH_STEPPING = 1.05
"""Least speed-up for which a round is made step by step."""
ENOUGH_ROUNDS = 6
"""Rounds fused once with which a request's rounds step by step are compared."""
FUSED_ONCE_EVERY = 16
"""One round in so many is fused once all the same, so that its speed stays measured."""
PROBE_ROUNDS = 4
WORTH_PROBING = 1.3
"""Least expected speed-up for which rounds step by step are probed, since estimates run high."""
FIRST_REST = 64
LONGEST_REST = 1024
"""Most rounds worth a probe that are left out between two probes."""


@dataclass(frozen=True, slots=True)
class DrafterTeam:
    """The drafters of a plan: `first_rate` is how often the most confident of them is right at the
    first token of a piece, `rate` how often its further tokens are; `exchange_s` and `token_s` are
    their common times for each piece and for each token of it."""

    size: int
    first_rate: float
    rate: float
    exchange_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class StepwisePlan:
    """A round step by step, and its expected tokens per second."""

    interval: int
    gamma: int
    draft_s: float
    speed: float


def best_steps(
    team: DrafterTeam, pass_s: Sequence[float], room: int, bookkeeping_s: float = 0.0
) -> StepwisePlan | None:
    """The interval and the length with the most tokens per second for a single active request; None
    without room for two pieces.

    pass_s[rows] is the expected time of a pass (index 0 unused). The drafts that do not become the
    trunk stay as siblings, so there are about as many rows as in a union.
    """
    best: StepwisePlan | None = None
    most = min(MAX_GAMMA, room - 1, len(pass_s) - 2)
    for interval in INTERVALS:
        tokens, path, draft_s = 1.0, 1.0, 0.0
        for gamma in range(1, most + 1):
            is_first = (gamma - 1) % interval == 0
            path *= team.first_rate if is_first else team.rate
            tokens += path
            draft_s += team.token_s + team.exchange_s * is_first
            if gamma <= interval:
                continue
            rows = min(1 + gamma + (team.size - 1) * (gamma + 1) // 2, len(pass_s) - 1)
            round_s = draft_s + pass_s[rows] + bookkeeping_s
            speed = tokens / round_s if round_s > 0.0 else 0.0
            if best is None or speed > best.speed:
                best = StepwisePlan(interval, gamma, draft_s, speed)
    return best


def explain(steps: StepwisePlan, team: DrafterTeam, fused_once: float) -> str:
    """The reason of a plan step by step, against the measured speed of rounds fused once."""
    return (
        f"K={steps.gamma} fused every {steps.interval}: rtt+wait {1e3 * team.exchange_s:.1f} ms, "
        f"t_d {1e3 * team.token_s:.1f} ms, acceptance of the most confident "
        f"{team.first_rate:.2f}; {steps.speed:.0f} tokens/s expected, {fused_once:.0f} fused once"
    )


@dataclass(slots=True)
class StepwiseGain:
    """Measured against expected speed of rounds step by step, and when to probe it."""

    measured: Speed = field(default_factory=Speed)
    """Committed tokens, over the tokens expected in the same time."""
    rest: int = FIRST_REST
    waited: int = 0

    @property
    def trust(self) -> float:
        """Measured over expected tokens per second."""
        return self.measured.per_s

    def wants(self, expected: float, fused_once: Speed) -> bool:
        """Whether to go step by step: if that was measured to be faster than rounds fused once, or
        if it is expected to be and a probe is due. Called once for each round."""
        if fused_once.num_passes < ENOUGH_ROUNDS or expected <= WORTH_STEPPING * fused_once.per_s:
            return False
        if 0 < self.measured.num_passes < PROBE_ROUNDS:
            return True
        if self.measured.num_passes and self.trust * expected > WORTH_STEPPING * fused_once.per_s:
            self.rest, self.waited = FIRST_REST, 0
            return True
        if expected <= WORTH_PROBING * fused_once.per_s:
            return False
        self.waited += 1
        if self.measured.num_passes and self.waited <= self.rest:
            return False
        if self.measured.num_passes:
            self.rest = min(LONGEST_REST, 2 * self.rest)
        self.measured, self.waited = Speed(), 0
        return True

    def observe(self, tokens: int, seconds: float, expected: float) -> None:
        """Learn from a round step by step, of which `expected` tokens per second were expected."""
        self.measured.observe(tokens, seconds * expected)
