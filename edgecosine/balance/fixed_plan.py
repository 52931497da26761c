"""Plans with a fixed draft length, of EdgeCoSine without adaptivity."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgecosine.balance.plan import Candidate, Plan, probe_plan
from edgecosine.balance.policy import FIXED_DRAFTERS, FIXED_GAMMA, Policy


def fixed_plan(policy: Policy, candidates: Sequence[Candidate], room: int) -> Plan:
    """The plan with the candidates of the highest rates."""
    gamma = min(FIXED_GAMMA, room - 1)
    chosen = sorted(candidates, key=lambda c: -c.rate)[: min(FIXED_DRAFTERS, policy.max_drafters)]
    if not chosen or gamma < 1:
        return Plan(reason=f"K=0: {policy.name}")
    return replace(
        probe_plan(chosen, room),
        gamma=gamma,
        draft_s=max(c.overhead_s + gamma * c.token_s for c in chosen),
        reason=f"K={gamma}: {policy.name}",
    )
