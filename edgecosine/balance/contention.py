"""How much drafters of the target's own machine delay its passes.

A drafter that computes on the target's own accelerator or cores takes their time: a step beside a
pass makes the pass longer, and a draft ahead costs what it saves. Where it has other cores, passes
hardly notice it. Only measured passes tell: those beside which such drafters had work, against
those beside which none had.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecosine.balance.cost_model import smooth

NOTICEABLE = 0.35
"""Delay of a pass over the time that a drafter worked beside it, from which the drafter counts as
one that shares the processor; taking turns they have 0.5."""
FEWEST_PASSES = 3
"""Passes beside a drafter's work before it is judged."""
_MEMORY = 0.95
_QUIET, _BUSY = 0.02, 0.1
"""Shares of a pass with a drafter's work: up to the first it tells what passes take without, from
the second what the work costs."""


@dataclass(slots=True)
class Contention:
    """Times are in seconds."""

    _working: dict[str, int] = field(default_factory=dict)
    """By the node ids of the linked drafters on the target's machine: drafts that are awaited."""
    _worked_s: float = 0.0
    """Time in which some were, until `_since`."""
    _since: float = 0.0
    _quiet: float = 1.0
    """Passes without such work, over their expected times; smoothed."""
    _delay_s: float = 0.0
    _beside_s: float = 0.0
    """Of the passes beside such work, fading."""
    _num_passes: int = 0

    def add(self, node_id: str) -> None:
        """A drafter of this machine was linked."""
        self._working[node_id] = 0

    def remove(self, node_id: str) -> None:
        """A link has ended, or leads to another machine."""
        self._working.pop(node_id, None)

    def begin(self, node_id: str, moment: float) -> None:
        """A draft is requested."""
        if node_id in self._working:
            self.worked_s(moment)
            self._working[node_id] += 1

    def end(self, node_id: str, moment: float) -> None:
        """A draft is there, or given up."""
        if self._working.get(node_id):
            self.worked_s(moment)
            self._working[node_id] -= 1

    def worked_s(self, moment: float) -> float:
        """Time until now in which drafters of this machine worked."""
        if any(self._working.values()):
            self._worked_s += moment - self._since
        self._since = moment
        return self._worked_s

    def observe(self, elapsed_s: float, beside_s: float, expected_s: float) -> float:
        """Learn from a pass beside which drafters worked for `beside_s`, and which was expected to
        take `expected_s` without them; returns by how much they delayed it, 0 if they hardly do."""
        if not self._working or expected_s <= 0.0:
            return 0.0
        beside_s = min(beside_s, elapsed_s)
        if beside_s <= _QUIET * elapsed_s:
            self._quiet = smooth(self._quiet, elapsed_s / expected_s, 1.0 - _MEMORY)
        elif beside_s >= _BUSY * elapsed_s:
            self._num_passes += 1
            self._delay_s = _MEMORY * self._delay_s + elapsed_s - self._quiet * expected_s
            self._beside_s = _MEMORY * self._beside_s + beside_s
        return self._share * beside_s

    @property
    def _share(self) -> float:
        """Delay of passes over the time of work beside them; 0 if it is not noticeable."""
        share = min(0.5, self._delay_s / self._beside_s) if self._beside_s else 0.0
        return share if share >= NOTICEABLE else 0.0

    def of(self, node_id: str) -> float:
        """Seconds by which passes are longer for each second of a drafter's steps, as long as the
        target's processor would do nothing else; 0 for one that hardly delays them."""
        if node_id not in self._working or self._num_passes < FEWEST_PASSES:
            return 0.0
        share = self._share
        return share / (1.0 - share)
