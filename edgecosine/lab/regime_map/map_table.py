"""The map's cells as rows of a table, all of them, whether EdgeCoSine wins or loses."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgecosine.lab.bench.cells import ALONE, OURS
from edgecosine.lab.paired_runs import ratio_figure
from edgecosine.lab.regime_map.cells import ONE_DRAFTER
from edgecosine.lab.regime_map.map_figures import TOKENS_PER_S, best_baseline, pairs

HEAD = (
    "requests at a time", "step / pass", "drafters", "RTT, ms", "text", "temperature",
    "target alone", "best baseline, tuned", "EdgeCoSine", "over the best baseline",
    "over its best drafter alone",
)  # fmt: skip
_MIXES = {"one": "one domain", "mixed": "mixed domains", "within": "changing within a request"}


def map_rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each cell, in tokens per second; ratios with their intervals."""
    return [_row(run) for run in runs if run.get("kind") == "map"]


def _row(cell: Mapping[str, Any]) -> list[str]:
    best = best_baseline(cell)
    setting = cell["settings"].get(best, best)
    return [
        str(cell["sessions"]),
        f"{cell['ratio']:g}",
        str(cell["drafters"]),
        f"{cell['rtt_ms']:g}",
        _MIXES[cell["mix"]],
        f"{cell['temperature']:g}",
        _speed(cell, ALONE),
        f"{_speed(cell, best)} (`{setting}`)",
        _speed(cell, OURS),
        _ratio(cell, best),
        _ratio(cell, ONE_DRAFTER),
    ]


def _speed(cell: Mapping[str, Any], policy: str) -> str:
    speeds = [repeat[TOKENS_PER_S] for repeat in cell["repeats"][policy]]
    return f"{statistics.median(speeds):.0f}"


def _ratio(cell: Mapping[str, Any], other: str) -> str:
    figure = ratio_figure(*pairs(cell, other))
    if figure.low is None:
        return str(figure)
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
