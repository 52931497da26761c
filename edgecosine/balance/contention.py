"""How much drafters of the target's own machine delay its passes.

A drafter that computes on the target's own accelerator or cores takes their time: a step beside a
pass makes the pass longer, and a draft ahead costs what it saves. Where it has other cores, passes
hardly notice it. Only a trial tells: passes beside which such drafters work, in turns with passes
beside which they rest, since the times of passes drift with the machine's other load.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

NOTICEABLE = 0.35
"""Delay of a pass over the time that a drafter worked beside it, from which the drafter counts as
one that shares the processor; taking turns they have 0.5."""
FEWEST_PASSES, MOST_PASSES = 4, 16
"""Passes of each kind in a trial, which ends between them when its result is clear."""
CLEARLY = 3.0
"""Standard errors between a clear result and `NOTICEABLE`."""
FIRST_REST, LONGEST_REST = 256, 4096
"""Passes between two trials; doubled after each one."""
MOST_DISTURBED = 32
"""Passes in a row with work where a trial waits for one without, after which it ends in vain."""
_QUIET, _BUSY = 0.02, 0.1
"""Shares of a pass with a drafter's work: up to the first it tells what passes take without, from
the second what the work costs."""


@dataclass(slots=True)
class _Trial:
    """The passes of a trial so far, of either kind in turns."""

    quiet: list[float] = field(default_factory=list)
    """Times of passes without work, over their expected times."""
    busy: list[tuple[float, float, float]] = field(default_factory=list)
    """Passes with work: their times, the expected ones, and the time of the work."""
    num_disturbed: int = 0

    @property
    def wants_quiet(self) -> bool:
        """Whether the next pass should have no work beside it."""
        return len(self.quiet) < len(self.busy)

    def observe(self, elapsed_s: float, beside_s: float, expected_s: float) -> bool:
        """Learn from a pass; returns whether the trial may be over."""
        if not self.wants_quiet:
            if beside_s >= _BUSY * elapsed_s:
                self.busy.append((elapsed_s, expected_s, beside_s))
            return False
        if beside_s > _QUIET * elapsed_s:
            self.num_disturbed += 1
            return self.num_disturbed >= MOST_DISTURBED
        self.num_disturbed = 0
        self.quiet.append(elapsed_s / expected_s)
        return True

    def result(self) -> float | None:
        """Delay of passes over the time of work beside them, less its standard error; None as long
        as it is open."""
        if len(self.quiet) < FEWEST_PASSES:
            return None
        mean, num_quiet = statistics.fmean(self.quiet), len(self.quiet)
        delays = [
            (elapsed_s - mean * expected_s, beside_s)
            for elapsed_s, expected_s, beside_s in self.busy
        ]
        worked_s = sum(beside_s for _, beside_s in delays)
        share = sum(delay_s for delay_s, _ in delays) / worked_s
        of_mean = statistics.stdev(self.quiet) / math.sqrt(num_quiet)
        of_mean_s = of_mean * sum(expected_s for _, expected_s, _ in self.busy)
        spread_s = math.hypot(*(each_s - share * work_s for each_s, work_s in delays), of_mean_s)
        error = spread_s / worked_s
        is_clear = abs(share - NOTICEABLE) >= CLEARLY * error
        return share - error if is_clear or num_quiet >= MOST_PASSES else None


@dataclass(slots=True)
class Contention:
    """Times are in seconds."""

    _working: dict[str, int] = field(default_factory=dict)
    """By the node ids of the linked drafters on the target's machine: drafts that are awaited."""
    _worked_s: float = 0.0
    """Time in which some were, until `_since`."""
    _since: float = 0.0
    _trial: _Trial | None = field(default_factory=_Trial)
    _rest: int = FIRST_REST
    _rest_left: int = 0
    """Passes until the next trial."""
    _share: float = 0.0
    """Delay of passes over the time of work beside them, by the last trial; 0 if it is not
    noticeable."""

    def add(self, node_id: str) -> None:
        """A drafter of this machine was linked; it may run elsewhere than the others."""
        self._working[node_id] = 0
        self._trial, self._rest = _Trial(), FIRST_REST

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
        if self._trial is not None:
            if self._trial.observe(elapsed_s, beside_s, expected_s):
                self._settle(self._trial)
        else:
            self._rest_left -= 1
            if self._rest_left <= 0:
                self._trial = _Trial()
        return self._share * beside_s

    def _settle(self, trial: _Trial) -> None:
        """End a trial that has a result, or that cannot come to one."""
        share = trial.result()
        if share is not None:
            self._share = min(0.5, share) if share >= NOTICEABLE else 0.0
        elif trial.num_disturbed < MOST_DISTURBED:
            return
        self._trial, self._rest_left = None, self._rest
        self._rest = min(LONGEST_REST, 2 * self._rest)

    def of(self, node_id: str) -> float:
        """Seconds by which passes are longer for each second of a drafter's steps, as long as the
        target's processor would do nothing else; 0 for one that hardly delays them."""
        return self._share / (1.0 - self._share) if node_id in self._working else 0.0

    def rests(self, node_id: str) -> bool:
        """Whether a drafter should do nothing while the next pass runs: it delays passes, unless a
        trial looks at that, or a trial needs a pass without its work."""
        if node_id not in self._working:
            return False
        return self._share > 0.0 if self._trial is None else self._trial.wants_quiet
