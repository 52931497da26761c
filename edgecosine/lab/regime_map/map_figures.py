"""The figures of the map, as pure functions of its records.

A pair is the runs of two policies in one repetition of one cell, on the same texts. The best
baseline of a cell is the one with the highest median throughput or the lowest median latency there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgecosine.balance.policy import BASELINES
from edgecosine.lab.bench.cells import ALONE, COLOCATED, OURS
from edgecosine.lab.figures import Figure, counted
from edgecosine.lab.paired_runs import ratio_figure
from edgecosine.lab.regime_map.cells import ALL_REMOTE, ONE_DRAFTER, MapCell

Cell = Mapping[str, Any]
TOKENS_PER_S, LATENCY_S = 0, 1
"""Indices of a repetition's numbers."""
NEVER_WORSE = 0.97


def map_figures(runs: Sequence[Cell]) -> dict[str, Figure]:
    """All figures for which the records have cells.

    Those of CoSine's setting combine its cells by the geometric mean within each repetition, for 8
    requests at a time; the suffix `_single` means one request at a time.
    """
    cells = [run for run in runs if run["kind"] == "map"]
    figures: dict[str, Figure] = {}
    for sessions, suffix in ((8, ""), (1, "_single")):
        papers = [
            cell for cell in cells
            if cell["sessions"] == sessions and map_cell(cell).is_of_the_paper
        ]  # fmt: skip
        figures |= {f"{name}{suffix}": figure for name, figure in _of_the_paper(papers)}
    if cells:
        figures |= dict(_of_all(cells))
    return figures


def map_cell(cell: Cell) -> MapCell:
    """The cell of a record."""
    return MapCell(**{name: cell[name] for name in MapCell.__dataclass_fields__ if name in cell})


def _of_the_paper(papers: Sequence[Cell]) -> Iterator[tuple[str, Figure]]:
    if not papers:
        return
    yield "cosine_throughput_over_best_baseline", _pooled(papers, best_baseline)
    latencies = [pairs(cell, best_baseline(cell, LATENCY_S), LATENCY_S) for cell in papers]
    yield "cosine_latency_over_best_baseline", _figure(latencies, smaller_is_better=True)
    yield "cosine_over_target_alone", _pooled(papers, lambda _: ALONE)
    yield "cooperation_worth", _pooled(papers, lambda _: ONE_DRAFTER)
    for part in dict.fromkeys(part for cell in papers for part in map_cell(cell).parts):
        without = f"{OURS}-without-{part}"
        if found := [pairs(cell, without) for cell in papers if without in cell["repeats"]]:
            yield (
                "second_drafter_worth" if part == "cooperation" else f"{part}_worth",
                _figure(found),
            )


def _of_all(cells: Sequence[Cell]) -> Iterator[tuple[str, Figure]]:
    worst = [over_best(cell) for cell in cells]
    yield "never_worse_than_best_baseline", counted(min(worst), "ratio")
    remote = [over_best(cell, without=(COLOCATED,), ours=_all_remote(cell)) for cell in cells]
    yield "never_worse_with_the_same_drafters", counted(min(remote), "ratio")
    lost = sum(ratio < NEVER_WORSE for ratio in worst)
    yield "cells_lost", counted(lost, "cells")
    yield "cells", counted(len(cells), "cells")


def over_best(cell: Cell, without: Sequence[str] = (), ours: str = OURS) -> float:
    """The median ratio of EdgeCoSine's throughput to the best baseline's in a cell."""
    found, theirs = pairs(cell, best_baseline(cell, without=without), ours=ours)
    return statistics.median(our / their for our, their in zip(found, theirs, strict=True))


def _all_remote(cell: Cell) -> str:
    return ALL_REMOTE if ALL_REMOTE in cell["repeats"] else OURS


def best_baseline(cell: Cell, place: int = TOKENS_PER_S, without: Sequence[str] = ()) -> str:
    """The baseline with the highest median throughput, or the lowest median latency."""
    medians: dict[str, float] = {
        name: statistics.median(each[place] for each in repeats)
        for name, repeats in cell["repeats"].items()
        if name in BASELINES and name not in without
    }
    ranked: list[str] = sorted(medians, key=lambda name: medians[name])
    return ranked[-1] if place == TOKENS_PER_S else ranked[0]


def pairs(
    cell: Cell, other: str, place: int = TOKENS_PER_S, ours: str = OURS
) -> tuple[list[float], list[float]]:
    """EdgeCoSine's numbers in a cell and another policy's, by repetition."""
    repeats = cell["repeats"]
    return [each[place] for each in repeats[ours]], [each[place] for each in repeats[other]]


def _pooled(cells: Sequence[Cell], other_of: Callable[[Cell], str]) -> Figure:
    return _figure([pairs(cell, other_of(cell)) for cell in cells])


def _figure(
    found: Sequence[tuple[list[float], list[float]]], *, smaller_is_better: bool = False
) -> Figure:
    ours, theirs = (
        [statistics.geometric_mean(each) for each in zip(*side, strict=True)]
        for side in zip(*found, strict=True)
    )
    return ratio_figure(ours, theirs, smaller_is_better=smaller_is_better)
