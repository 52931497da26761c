"""One run of a benchmark as plain data, which measurements write and plots read.

It has percentiles of latencies, the throughput of the whole run, and single requests on demand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edgecosine.lab.measured_requests import Load, MeasuredAnswer
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions

PERCENTILES = (50, 90, 99)
SHARES = ("proposed", "accepted", "led", "first")


@dataclass(frozen=True, slots=True)
class ClosedLoad:
    """A fixed number of running requests."""

    concurrency: int
    kind: str = "closed"


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """Arrivals that do not depend on answers; a steady rate has equal `low_per_s` and
    `high_per_s`."""

    low_per_s: float
    high_per_s: float
    period_s: float | None = None
    kind: str = "open"


class Conditions(msgspec.Struct, frozen=True):
    """The conditions of a run; `network` are those of the drafters' cables."""

    policy: str
    load: ClosedLoad | OpenLoad
    temperature: float = 0.0
    network: NetworkConditions = IDEAL
    repeat: int = 0


def run_record(
    conditions: Conditions, load: Load, *, with_requests: bool = False
) -> dict[str, Any]:
    """A run as JSON values; percentiles without samples are null."""
    measured = load.answers
    record = {
        **msgspec.to_builtins(conditions),
        "elapsed_s": load.elapsed_s,
        "num_requests": len(measured),
        "num_tokens": load.num_tokens,
        "tokens_per_s": load.tokens_per_s,
        "refused": [error.code for error in load.refused],
        "latency_s": percentiles(a.elapsed_s for a in measured),
        "first_text_s": percentiles(a.first_text_s for a in measured if a.first_text_s is not None),
        "inter_token_s": percentiles(
            a.inter_token_s for a in measured if a.inter_token_s is not None
        ),
        "queue_s": percentiles(a.queue_s for a in measured),
        "acceptance_length": load.acceptance_length,
        "ahead_hit_rate": load.ahead_hit_rate,
        "drafters": shares(measured),
    }
    if with_requests:
        record["requests"] = [a.record() for a in measured]
    return record


def percentiles(samples: Iterable[float]) -> dict[str, float | None]:
    """Mean and percentiles by name, interpolated linearly; None for each without samples."""
    values = np.fromiter(samples, dtype=float)
    if not len(values):
        return {"mean": None, **{f"p{share}": None for share in PERCENTILES}}
    points = np.percentile(values, PERCENTILES)
    named = {f"p{n}": float(point) for n, point in zip(PERCENTILES, points, strict=True)}
    return {"mean": float(values.mean()), **named}


def shares(measured: Iterable[MeasuredAnswer]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts by a drafter's node id and by domain: proposed and accepted draft tokens, rounds that
    it led, and requests whose first round it led."""
    counts: defaultdict[str, defaultdict[str, dict[str, int]]] = defaultdict(
        lambda: defaultdict(lambda: dict.fromkeys(SHARES, 0))
    )
    for answer in measured:
        for node_id, share in answer.drafters.items():
            for key in SHARES:
                counts[node_id][answer.domain][key] += share[key]
    return {node_id: dict(domains) for node_id, domains in sorted(counts.items())}
