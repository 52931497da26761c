"""The record of a soak, minute by minute, and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecosine.lab.bench.record import percentiles
from edgecosine.lab.figures import Figure, counted, joint_interval
from edgecosine.lab.soak.clients import SoakCounts

MINUTE_S = 60.0
Phase = Literal["capacity", "before", "overload", "rest", "after"]

_MIB = 1 << 20
_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Minute:
    """Measurements of one minute, or of the rest of a phase."""

    phase: Phase
    elapsed_s: float
    arrivals_per_s: float
    counts: SoakCounts
    num_running: int
    """Requests that still run at its end."""
    resident_bytes: Mapping[str, int]
    """Resident memory of every process."""
    pids: Mapping[str, int]

    @property
    def served_per_s(self) -> float:
        """Answers per second; choices are not counted."""
        return self.counts.served / self.elapsed_s

    def record(self) -> dict[str, Any]:
        """The minute as plain data, for the report."""
        counts = self.counts
        return {
            "phase": self.phase,
            "elapsed_s": self.elapsed_s,
            "arrivals_per_s": self.arrivals_per_s,
            "served": counts.served,
            "refused": dict(counts.refused),
            "cancelled": counts.cancelled,
            "expired": counts.expired,
            "other_errors": dict(counts.other_errors),
            "latency_s": percentiles(counts.latencies_s),
            "num_at_work": self.num_running,
            "resident_bytes": dict(self.resident_bytes),
            "pids": dict(self.pids),
        }

    def __str__(self) -> str:
        counts = self.counts
        latency_s = percentiles(counts.latencies_s)
        resident = ", ".join(f"{k} {v / _MIB:.0f}" for k, v in self.resident_bytes.items())
        return (
            f"{self.phase}: {self.arrivals_per_s:.2f}/s sent, {counts.served} served, "
            f"{counts.refused.total()} refused, {counts.cancelled} cancelled, {counts.expired} "
            f"expired, {counts.other_errors.total()} other errors, {self.num_running} running; "
            f"latency p50 {latency_s['p50'] or 0:.2f} s, p99 {latency_s['p99'] or 0:.2f} s; "
            f"MiB: {resident}"
        )


def soak_figures(minutes: Sequence[Minute]) -> dict[str, Figure]:
    """Figures of the minutes so far. Those of memory and latency appear after enough minutes.

    Memory growth is the median of the last quarter of the overload minus that of the first.
    """
    overload = [m for m in minutes if m.phase == "overload"]
    all_counts = [m.counts for m in minutes if m.phase != "capacity"]
    found = {
        "soak_minutes": counted(sum(m.elapsed_s for m in overload) / MINUTE_S, "min"),
        "soak_asked": counted(sum(t.num_ended for t in all_counts), "requests"),
        "soak_served": counted(sum(t.served for t in all_counts), "requests"),
        "soak_refused_with_hint": counted(sum(t.refused.total() for t in all_counts), "requests"),
        "soak_cancelled": counted(sum(t.cancelled for t in all_counts), "requests"),
        "soak_expired": counted(sum(t.expired for t in all_counts), "requests"),
        "soak_other_errors": counted(sum(t.other_errors.total() for t in all_counts), "requests"),
        "soak_hung": counted(sum(m.num_running for m in minutes if m.phase == "rest"), "requests"),
        "soak_restarts": counted(_num_restarts(minutes), "requests"),
    }
    if len(overload) >= _QUARTERS:
        growth = {name: _growth_mib(overload, name) for name in overload[0].resident_bytes}
        found["soak_memory_growth_mib"] = counted(max(growth.values()), "MiB")
        for name, mib in growth.items():
            found[f"soak_memory_growth_mib_{name}"] = counted(mib, "MiB")
    before, after = (_latencies_s(minutes, phase) for phase in ("before", "after"))
    if before and after:
        found["soak_after_latency_ratio"] = joint_interval(_ratio_of_medians, after, before)
    return found


def _num_restarts(minutes: Sequence[Minute]) -> int:
    """Processes that replaced one of the first minute."""
    return len({pid for m in minutes for pid in m.pids.items()}) - (
        len(minutes[0].pids) if minutes else 0
    )


def _growth_mib(overload: Sequence[Minute], name: str) -> float:
    sizes = [m.resident_bytes.get(name, 0) for m in overload]
    quarter = len(sizes) // _QUARTERS
    return (statistics.median(sizes[-quarter:]) - statistics.median(sizes[:quarter])) / _MIB


def _latencies_s(minutes: Sequence[Minute], phase: str) -> list[float]:
    return [each for m in minutes if m.phase == phase for each in m.counts.latencies_s]


def _ratio_of_medians(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(over) / statistics.median(under)
