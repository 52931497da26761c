"""The last minutes of a target's measurements."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from edgecosine.metrics.measurements import Measurements

KEPT_SAMPLES = 300
PERIOD_S = 1.0


class Sample(NamedTuple):
    """Counts since the start, at a moment in seconds since 1970."""

    at_s: float
    tokens: int
    rounds: int
    """Target passes of sessions, without prefill."""
    draft_tokens: int
    accepted_tokens: int


class History:
    """Samples of `measured`, oldest first."""

    def __init__(self, measured: Measurements) -> None:
        self._measured = measured
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)

    @property
    def samples(self) -> Sequence[Sample]:
        """At most `KEPT_SAMPLES`."""
        return tuple(self._samples)

    def sample(self, at_s: float) -> None:
        """Add the present counts."""
        measured = self._measured
        self._samples.append(
            Sample(
                round(at_s, 3),
                measured.num_generated_tokens,
                measured.num_rounds,
                measured.num_draft_tokens,
                sum(measured.accepted_at),
            )
        )
