"""A planner whose calls are timed: the real seconds that decisions take, call by call. What its
plans cost the simulated event loop follows from the drafters that they compare."""

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
    """Adds up the real seconds of each kind of call in `times`; calls do not contain each other.

    alike   how alike two tokens are, -1 to 1
    charge  called with the number of drafters whenever some are compared for a request
    """

    def __init__(self, alike: Callable[[int, int], float], charge: Callable[[int], None]) -> None:
        super().__init__(alike)
        self._charge = charge
        self.num_compared = 0
        """Drafters that were compared, once for each time."""
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
