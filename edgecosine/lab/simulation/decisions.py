"""A planner that measures the real seconds of each of its decisions.

The cost of a plan in virtual time follows from the number of drafters that it compares.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any

from edgecosine.balance.plan import Candidate
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState


class TimedPlanner(Planner):
    """A planner with the real seconds of each call in `times`, by method; the timed methods do not
    call each other.

    alike   returns the similarity of two tokens, -1 to 1
    charge  is called with the number of drafters whenever some are compared for a request
    """

    def __init__(self, alike: Callable[[int, int], float], charge: Callable[[int], None]) -> None:
        super().__init__(alike)
        self._charge = charge
        self.num_compared = 0
        """Number of comparisons so far: for each plan, the drafters that it compared."""
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        decisions: Mapping[object, tuple[str, ...]] = {
            self: (
                "is_plain", "first_plan", "plan", "start_round", "fuse", "ahead", "probe",
            ),
            self.statistics: (
                "shortlist", "patience_s",
                "observe_round", "observe_answer", "observe_ahead", "observe_late", "observe_pass",
                "batch_wait_s",
            ),
            self.statistics.acceptance: ("most_confident", "observe_text", "observe_truth"),
        }  # fmt: skip
        for owner, names in decisions.items():
            for name in names:
                setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _candidates(self, request: RequestState, drafters: Collection[str]) -> list[Candidate]:
        found = super()._candidates(request, drafters)
        self.num_compared += len(found)
        self._charge(len(found))
        return found

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **named)
            self.times[name].append(time.perf_counter() - started)
            return result

        return timed
