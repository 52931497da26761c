"""The data of the map's plots, computed from its records."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgecosine.balance.policy import BASELINES
from edgecosine.lab.bench.cells import OURS
from edgecosine.lab.regime_map.cells import ONE_DRAFTER, MapCell
from edgecosine.lab.regime_map.map_figures import best_baseline, map_cell, pairs
from edgecosine.lab.simulation.curves import Curves

_AXES: Mapping[str, str] = {
    "ratio": "a drafter's step over a target's pass",
    "drafters": "drafters",
    "rtt_ms": "round trip (ms)",
}
_Y_LABELS = {
    "over others": "tokens/s of EdgeCoSine over those of others",
    "parts": "tokens/s with a part over those without it",
}
_BEST = "best baseline"


def map_curves(runs: Sequence[Mapping[str, Any]]) -> list[Curves]:
    """For each axis and number of requests at a time: EdgeCoSine's throughput over that of others,
    and over its own without each part."""
    cells = {map_cell(run): run for run in runs if run.get("kind") == "map"}
    recordings = dict.fromkeys(cell.texts for cell in cells)
    found = []
    for texts, sessions in itertools.product(recordings, (8, 1)):
        for axis, label in _AXES.items():
            line = _line(cells, MapCell(sessions, texts=texts), axis)
            title = f"{axis.removesuffix('_ms')}, {sessions} at a time"
            for kind, lines in (("over others", _over_others(line)), ("parts", _parts(line))):
                if any(len(points) > 1 for points in lines.values()):
                    found.append(Curves(f"{kind} by {title}", label, _Y_LABELS[kind], lines))
    return found


Line = list[tuple[float, Mapping[str, Any]]]
Ratios = dict[str, list[tuple[float, float]]]


def _line(cells: Mapping[MapCell, Mapping[str, Any]], centre: MapCell, axis: str) -> Line:
    """The recorded cells that differ from the centre in one axis alone, in its order."""
    return sorted(
        (
            (float(getattr(cell, axis)), record)
            for cell, record in cells.items()
            if replace(cell, **{axis: getattr(centre, axis)}) == centre
        ),
        key=lambda point: point[0],
    )


def _over_others(line: Line) -> Ratios:
    lines: Ratios = {_BEST: [], ONE_DRAFTER: []}
    for x, cell in line:
        lines[_BEST].append((x, _ratio(cell, best_baseline(cell))))
        for name in cell["repeats"]:
            if name in (*BASELINES, ONE_DRAFTER):
                lines.setdefault(name, []).append((x, _ratio(cell, name)))
    return lines


def _parts(line: Line) -> Ratios:
    lines: Ratios = {}
    for x, cell in line:
        for part in map_cell(cell).parts:
            lines.setdefault(part, []).append((x, _ratio(cell, f"{OURS}-without-{part}")))
    return lines


def _ratio(cell: Mapping[str, Any], other: str) -> float:
    ours, theirs = pairs(cell, other)
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
