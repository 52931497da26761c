"""Plans of policies with a fixed draft length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from edgecosine.balance.plan import Candidate, Plan, probe_plan
from edgecosine.balance.policy import FIXED_GAMMA
from edgecosine.balance.request_state import RequestState

COSINE_GOOD = 2.0
"""Accepted tokens per round from which on the paper's routing exploits (CoSine, section 4.2)."""


def fixed_plan(request: RequestState, candidates: Sequence[Candidate], room: int) -> Plan:
    """The plan with the candidates of the highest rates, or by CoSine's routing."""
    policy = request.policy
    gamma = min(FIXED_GAMMA, room - 1)
    by_rate = sorted(candidates, key=lambda c: -c.rate)
    if policy.routing == "cosine":
        is_good = (request.accepted or 0.0) >= COSINE_GOOD
        by_rate = by_rate[: 2 if is_good else len(by_rate)]
    chosen = by_rate[: policy.max_drafters]
    if not chosen or gamma < 1:
        return Plan(reason=f"K=0: {policy.name}")
    plan = probe_plan(chosen, room)
    pieces = math.ceil(gamma / policy.interval) if policy.interval else 1
    return replace(
        plan,
        gamma=gamma,
        interval=policy.interval,
        draft_s=max(pieces * c.overhead_s + gamma * c.token_s for c in chosen),
        reason=f"K={gamma}: {policy.name}",
    )
