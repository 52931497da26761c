"""The drafters that plans choose among, with what is expected of each for a request."""

from __future__ import annotations

from collections.abc import Collection

from edgecosine.balance.plan import MAX_GAMMA, TRIAL_GAMMA, Candidate
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics


def candidates_of(
    request: RequestState, drafters: Collection[str], statistics: Statistics
) -> list[Candidate]:
    """Those of the `drafters` that may be asked, sorted by node id."""
    return [_candidate(node_id, request, statistics) for node_id in statistics.available(drafters)]


def _candidate(node_id: str, request: RequestState, statistics: Statistics) -> Candidate:
    state = statistics.drafter(node_id)
    step_s = state.speed.token_s or state.speed.ahead_step_s
    return Candidate(
        node_id=node_id,
        rate=request.rates.estimate(node_id, state.record),
        evidence=request.rates.evidence(node_id),
        token_s=step_s or 0.0,
        overhead_s=state.speed.believed_overhead_s(is_alone=statistics.num_active == 1),
        is_measured=state.speed.overhead_s is not None,
        longest=MAX_GAMMA if step_s is not None else TRIAL_GAMMA,
        contention=statistics.contention.of(node_id),
    )
