"""The data of a sweep's plots, computed from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Curves:
    """One plot: points (x, y) by the name of their line, in the order of x, whose axis is
    logarithmic. `is_log` is whether the y axis is, too."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    is_log: bool = False


_HARDWARE = {"here": "passes as measured", "flat": "passes of an accelerator"}
_BY_SESSIONS = (
    ("throughput", "tokens/s", "tokens_per_s"),
    ("target busy", "share of time in passes", "target_busy"),
    ("event loop", "share of time in the target's event loop", "loop_share"),
)


def sweep_curves(runs: Runs) -> list[Curves]:
    """The plots of a sweep: figures over sessions with a line for each number of drafters, and time
    of decisions over drafters."""
    found = []
    swept = [run for run in runs if run.get("kind") == "sweep" and run["targets"] == 1]
    for hardware, words in _HARDWARE.items():
        here = [run for run in swept if run["hardware"] == hardware]
        for name, label, key in _BY_SESSIONS:
            lines = _lines(here, "drafters", "sessions", key, "no drafters", "drafters")
            if lines:
                found.append(Curves(f"{name}, {words}", "sessions", label, lines))
        drafted = [run for run in here if run["drafters"]]
        lines = _lines(drafted, "sessions", "drafters", "decision_us_per_round", "", "sessions")
        if lines:
            title, label = f"decisions, {words}", "microseconds a round"
            found.append(Curves(title, "drafters", label, lines, is_log=True))
    return found


def _lines(
    runs: Runs, by: str, along: str, key: str, none: str, some: str
) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for run in sorted(runs, key=lambda run: (run[by], run[along])):
        name = f"{run[by]} {some}" if run[by] else none
        lines.setdefault(name, []).append((float(run[along]), float(run[key])))
    return lines
