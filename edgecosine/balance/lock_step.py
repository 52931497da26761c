"""Whether all requests wait for their drafts, and are verified in one pass.

Mostly each request decides for itself: while it waits for a draft the passes of the others run, and
drafts made ahead spare the wait. Where a pass is too short for drafts ahead, since steps are slow
or links are long, each request would decode plainly rather than miss a pass. If all of them wait,
no pass is missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgecosine.balance.plan import MAX_GAMMA, CoBatchedRequests
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics

FEWEST_STEPS = 3
"""Steps of a draft ahead that must fit into a pass: the first one finds likely tokens of the
target's own, and one more token is little."""
_MOST_ROWS = 2 * MAX_GAMMA + 1


def waits_together(drafters: Iterable[str], statistics: Statistics) -> bool:
    """Whether none of these drafters makes `FEWEST_STEPS` while a pass of several requests runs, as
    far as their steps were measured. Those that share its processor draft nothing ahead."""
    if statistics.num_active < 2:
        return False
    speeds = [(statistics.drafter(node_id).speed, node_id) for node_id in drafters]
    times_s = [
        math.inf
        if statistics.contention.of(node_id)
        else (speed.overhead_s or 0.0) + FEWEST_STEPS * step_s
        for speed, node_id in speeds
        if (step_s := speed.token_s or speed.ahead_step_s) is not None
    ]
    return bool(times_s) and min(times_s) > statistics.pass_s(statistics.num_active)


def as_one_request(
    request: RequestState, statistics: Statistics
) -> tuple[list[float], CoBatchedRequests]:
    """What plans need where all active requests do alike: the times of their pass by the rows of
    each (index 0 unused), and their bookkeeping."""
    num_active = statistics.num_active
    pass_s = [0.0, *(statistics.pass_s(num_active * rows) for rows in range(1, _MOST_ROWS + 1))]
    bookkeeping_s = statistics.co_batched(request).bookkeeping_s
    return pass_s, CoBatchedRequests(bookkeeping_s=bookkeeping_s)
