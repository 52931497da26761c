"""A planner whose calls are timed: the real seconds that decisions take, call by call."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from edgecosine.balance.planner import Planner


class TimedPlanner(Planner):
    """Adds up the real seconds of each kind of call in `times`; calls do not contain each other."""

    def __init__(self) -> None:
        super().__init__()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        decisions: Mapping[object, tuple[str, ...]] = {
            self: ("first_plan", "plan", "start_round", "fuse", "ahead", "patience_s", "probe"),
            self.statistics: (
                "observe_round", "observe_answer", "observe_ahead", "observe_late", "observe_pass",
                "batch_wait_s",
            ),
            self.statistics.acceptance: ("most_confident", "observe_text", "observe_truth"),
        }  # fmt: skip
        for owner, names in decisions.items():
            for name in names:
                setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **named)
            self.times[name].append(time.perf_counter() - started)
            return result

        return timed
