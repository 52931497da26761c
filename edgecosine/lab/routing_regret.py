"""The quality of routing, compared with the best fixed drafter of each domain.

The value of a drafter in a domain is the mean number of accepted tokens of its drafts, from the
zoo's matrix of drafters by domains. A round counts for the drafter that its plan named first. Pure
functions of a run's record.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Matrix = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Routing:
    """Shares of one run, from 0 to 1.

    regret       share of the best drafter's value that was missed, mean over the domains
    to_best      by domain, the share of rounds that the best drafter led
    first_right  share of requests whose first round the best drafter led
    """

    regret: float
    to_best: Mapping[str, float]
    first_right: float


def routing(run: Mapping[str, Any], matrix: Matrix) -> Routing | None:
    """The shares of a run; None when its record does not name the leading drafters."""
    regrets: list[float] = []
    to_best: dict[str, float] = {}
    firsts = firsts_right = 0
    for domain in sorted({domain for row in matrix.values() for domain in row}):
        led = _counts(run, matrix, domain, "led")
        if not sum(led.values()):
            continue
        best = max(matrix, key=lambda name: matrix[name][domain])
        worth = sum(led[name] * matrix[name][domain] for name in led) / sum(led.values())
        regrets.append(1.0 - worth / matrix[best][domain])
        to_best[domain] = led[best] / sum(led.values())
        first = _counts(run, matrix, domain, "first")
        firsts += sum(first.values())
        firsts_right += first[best]
    if not regrets:
        return None
    return Routing(statistics.fmean(regrets), to_best, firsts_right / max(1, firsts))


def _counts(run: Mapping[str, Any], matrix: Matrix, domain: str, key: str) -> dict[str, int]:
    counts = dict.fromkeys(matrix, 0)
    for node_id, domains in run.get("drafters", {}).items():
        name = node_id.rpartition("-")[0] or node_id
        if name in counts:
            counts[name] += domains.get(domain, {}).get(key, 0)
    return counts
