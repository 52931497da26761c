"""What drafters draft while the target verifies a tree: after its endpoints, for one pass.

Not those that share the target's processor, except in trials: a fresh draft takes less of its time
than one after all endpoints.
"""

from __future__ import annotations

from collections.abc import Collection

from edgecosine.balance.plan import Plan
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.protocol.wire.tree import TokenTree

AHEAD_WIDTH = 6
"""Nodes that a drafter reads per step while it drafts ahead, with a pass's time."""
AHEAD_STEPS = (2, 24)
"""Fewest and most steps ahead of a lone root: the first one finds likely tokens of the target's
own, below which only the second one drafts. A tree takes another one, which reads it."""


def plan_ahead(
    request: RequestState,
    drafters: Collection[str],
    plan: Plan,
    tree: TokenTree,
    statistics: Statistics,
) -> Plan:
    """The plan to draft after all endpoints of `tree`, with those of the plan's drafters that are
    among `drafters`; empty without any."""
    policy = request.policy
    asked = tuple(
        node_id
        for node_id in plan.drafters
        if node_id in drafters and not statistics.contention.rests(node_id)
    )
    if not policy.is_ahead or not asked:
        return Plan()
    fewest, most = AHEAD_STEPS
    pass_s = statistics.pass_times(statistics.co_batched(request))[1 + len(tree)]
    speeds = [statistics.drafter(node_id).speed for node_id in asked]
    within = [steps for speed in speeds if (steps := speed.steps_within(pass_s)) is not None]
    steps = min(within, default=plan.gamma + 1)
    fewest += bool(len(tree))
    # Drafters count their own steps, which queues and batches delay, unless too few would fit.
    is_timed = bool(within) and steps >= fewest
    return Plan(
        drafters=asked,
        gamma=most if is_timed else min(most, max(fewest, steps)),
        width=AHEAD_WIDTH if policy.width else 1,
        within_s=pass_s if is_timed else 0.0,
        deadline_s=pass_s + plan.deadline_s,
    )
