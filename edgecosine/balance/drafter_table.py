"""The state of each drafter, and the drafters that rest because they answered late."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgecosine.balance.cost_model import DrafterSpeed
from edgecosine.balance.plan import PROBE_GAMMA
from edgecosine.balance.request_state import RequestState
from edgecosine.fusion.acceptance_rates import DrafterRecord
from edgecosine.fusion.calibration import Calibration

FIRST_REST = 24
LONGEST_REST = 64 * FIRST_REST
"""Most plans in a row that leave out a drafter which keeps answering late."""
MUCH_QUICKER = 0.5
"""Share of a drafter's slowest expected time below which speculation is worth another try."""
MAX_KNOWN = 1024
"""Drafters kept at most; beyond it those whose links ended the longest ago are dropped."""
SHORTLIST = 16
"""Drafters that are compared for one request at a time, at most."""
KNOWN_BEST, LEAST_KNOWN = 8, 32
"""If there are many drafters, a shortlist has this many with the highest rates; the rest are taken
in rotation from this many with the least evidence."""
RANKED_FOR = 256
"""Plans after which drafters are ranked again."""


@dataclass(slots=True)
class DrafterState:
    """One drafter. Calibration differs with and without sampling noise."""

    speed: DrafterSpeed = field(default_factory=DrafterSpeed)
    record: DrafterRecord = field(default_factory=DrafterRecord)
    greedy_calibration: Calibration = field(default_factory=Calibration)
    sampled_calibration: Calibration = field(default_factory=Calibration)
    slowest_s: float = 0.0
    """Longest expected time of a short draft since the drafter last became much quicker."""
    num_drafted: int = 0
    num_late: int = 0
    rest: int = 0
    """Plans that leave the drafter out when it is late again; doubled each time."""
    back_at: int = 0
    """Number of the first plan that may include the drafter again."""
    host: str = ""
    """Numeric address of its machine; empty if unknown."""

    def calibration(self, *, is_greedy: bool) -> Calibration:
        """The calibration for greedy or for sampled requests."""
        return self.greedy_calibration if is_greedy else self.sampled_calibration

    def restart(self) -> None:
        """Drop the speed and the rest period of a drafter with a new link."""
        self.speed, self.slowest_s = DrafterSpeed(), 0.0
        self.rest = self.back_at = 0

    def observe_answer(
        self,
        elapsed_s: float,
        compute_s: float,
        num_tokens: int,
        num_steps: int | None,
        *,
        is_disturbed: bool,
    ) -> bool:
        """Learn from an answer in time; returns whether the drafter became much quicker."""
        self.num_drafted += num_tokens
        self.rest = 0
        if num_steps is None:
            num_steps = num_tokens
        self.speed.observe(elapsed_s, compute_s, num_steps, is_disturbed=is_disturbed)
        expected_s = self.speed.expected_s(PROBE_GAMMA)
        is_much_quicker = expected_s < MUCH_QUICKER * self.slowest_s
        self.slowest_s = expected_s if is_much_quicker else max(self.slowest_s, expected_s)
        return is_much_quicker

    def observe_late(self, waited_s: float, num_plans: int) -> None:
        """Learn from an answer that missed its deadline; `num_plans` were made until now."""
        self.num_late += 1
        self.speed.observe_late(waited_s)
        self.slowest_s = max(self.slowest_s, self.speed.expected_s(PROBE_GAMMA))
        if self.back_at <= num_plans:
            self.back_at = num_plans + self.rest
            self.rest = min(LONGEST_REST, 2 * self.rest or FIRST_REST)


class DrafterTable:
    """Drafters by node id; linked drafters are never dropped."""

    def __init__(self) -> None:
        self._states: dict[str, DrafterState] = {}
        """In order of the last change of their links."""
        self._linked: set[str] = set()
        self._best: list[str] = []
        self._least_known: list[str] = []
        self._ranked_until = 0

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._states

    def get(self, node_id: str) -> DrafterState:
        """The state of a drafter, which is created if there is none."""
        state = self._states.get(node_id)
        if state is None:
            state = self._states[node_id] = DrafterState()
        return state

    def available(self, drafters: Iterable[str], num_plans: int) -> list[str]:
        """The drafters that do not rest, sorted."""
        return [name for name in sorted(drafters) if self.get(name).back_at <= num_plans]

    def shortlist(self, request: RequestState, num_plans: int) -> list[str]:
        """Of many linked drafters those that are compared for a request, SHORTLIST at most. Its
        cost does not depend on their number, since all requests use one ranking for a while."""
        if num_plans >= self._ranked_until:
            self._rank(num_plans)
        names = [*self._best]
        turn = request.number * (SHORTLIST - len(names)) % max(1, len(self._least_known))
        names += self._least_known[turn:] + self._least_known[:turn]
        return list(dict.fromkeys(names))[:SHORTLIST]

    def _rank(self, num_plans: int) -> None:
        self._ranked_until = num_plans + RANKED_FOR
        rates = {
            name: state.record.rate
            for name in sorted(self._linked)
            if (state := self._states[name]).back_at <= num_plans
        }
        priors = {name: self._states[name].record.prior for name in rates}
        self._best = heapq.nlargest(KNOWN_BEST, rates, key=priors.__getitem__)
        self._least_known = heapq.nsmallest(
            LEAST_KNOWN, rates, key=lambda name: rates[name].evidence
        )

    def add_link(self, node_id: str, host: str = "") -> None:
        """A drafter of the machine `host` was linked. Others may be dropped to make room."""
        state = self.get(node_id)
        state.restart()
        state.host = host
        self._linked.add(node_id)
        self._ranked_until = 0
        self._make_newest(node_id)
        excess = max(0, len(self._states) - MAX_KNOWN)
        for name in [name for name in self._states if name not in self._linked][:excess]:
            del self._states[name]

    def remove_link(self, node_id: str) -> None:
        """A drafter's link has ended; its state stays while there is room."""
        self._linked.discard(node_id)
        self._ranked_until = 0
        if node_id in self._states:
            self._make_newest(node_id)

    def _make_newest(self, node_id: str) -> None:
        self._states[node_id] = self._states.pop(node_id)
