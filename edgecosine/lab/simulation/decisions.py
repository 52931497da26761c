"""The runtime's balancer with a stopwatch: what decisions really take, call by call."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

from edgecosine.balance.planner import Planner

DECISIONS = (
    "first_plan", "plan", "is_enough", "fuse", "ahead", "patience_s", "trial", "most_confident",
    "observe_text", "observe_truth", "observe_round", "observe_answer", "observe_ahead",
    "observe_late", "observe_pass", "hold_s",
)  # fmt: skip


class TimedPlanner(Planner):
    """Adds up the real seconds of each kind of call in `times`. No call uses another."""

    def __init__(self) -> None:
        super().__init__()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        for name in DECISIONS:
            setattr(self, name, self._timed(name, getattr(self, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **named)
            self.times[name].append(time.perf_counter() - started)
            return result

        return timed
