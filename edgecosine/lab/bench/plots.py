"""Draws the plots of a benchmark's record. Only this file imports matplotlib, which is optional.

The same record gives the same files, so that committed plots change only with their data.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgecosine.errors import LabError
from edgecosine.lab.bench.charts import (
    Chart,
    Matrix,
    Timeline,
    acceptance,
    frontiers,
    rtt_sweeps,
    timelines,
)
from edgecosine.lab.bench.committee.curves import reconstruction_curves
from edgecosine.lab.regime_map.map_curves import map_curves
from edgecosine.lab.simulation.curves import Curves, sweep_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which colour-blind readers can distinguish."""
_ACTIVITIES = {
    "draft": "#009E73",
    "network": "#56B4E9",
    "waiting": "#D9D9D9",
    "verify": "#D55E00",
}
_STYLE: Any = {
    "svg.hashsalt": "edgecosine",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def write_plots(record: Path, directory: Path, kind: Format = "svg") -> list[Path]:
    """Draw all plots for which the record has data; returns the written files.

    Raises LabError without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise LabError("plots need matplotlib: pip install 'edgecosine[lab]'") from error
    mpl.use("agg")
    runs = json.loads(record.read_text())["runs"]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(_STYLE):
        for name, figure in _figures(runs):
            path = directory / f"{name}.{kind}"
            figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _figures(runs: list[dict[str, Any]]) -> Iterator[tuple[str, Figure]]:
    for curves in sweep_curves(runs):
        yield _name("sweep", curves.title), _draw_curves(curves)
    for curves in map_curves(runs):
        yield _name("map", curves.title), _draw_curves(curves)
    for curves in reconstruction_curves(runs):
        yield _name("specfed", curves.title), _draw_curves(curves)
    runs = [run for run in runs if "kind" not in run]
    policies = dict.fromkeys(run["policy"] for run in runs)
    colours = dict(zip(policies, itertools.cycle(_COLOURS), strict=False))
    for chart in frontiers(runs):
        yield _name("frontier", chart.title), _draw_frontier(chart, colours)
    for chart in rtt_sweeps(runs):
        yield _name("rtt", chart.title), _draw_sweep(chart, colours)
    for matrix in acceptance(runs):
        yield _name("acceptance", matrix.title), _draw_matrix(matrix)
    for timeline in timelines(runs):
        yield _name("timeline", timeline.title), _draw_timeline(timeline)


def _name(kind: str, title: str) -> str:
    return f"{kind}-{re.sub(r'[^a-z0-9.]+', '-', title.lower()).strip('-')}"


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _draw_frontier(chart: Chart, colours: Mapping[str, str]) -> Figure:
    figure, axes = _new(6, 4)
    for policy, points in chart.curves.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", color=colours[policy], label=policy)
        for point, label in zip(points, chart.labels, strict=False):
            axes.annotate(label, point, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="time between tokens, median (ms)", ylabel="tokens/s", title=chart.title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _draw_sweep(chart: Chart, colours: Mapping[str, str]) -> Figure:
    figure, axes = _new(6, 4)
    for policy, points in chart.curves.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", color=colours[policy], label=policy)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("symlog", linthresh=0.1)
    ticks = sorted({x for points in chart.curves.values() for x, _ in points})
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="round trip (ms)", ylabel="times the target alone", title=chart.title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _draw_curves(curves: Curves) -> Figure:
    figure, axes = _new(6, 4)
    for (name, points), colour in zip(
        curves.lines.items(), itertools.cycle(_COLOURS), strict=False
    ):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", color=colour, label=name)
    axes.set_xscale("log")
    if curves.is_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=curves.x_label, ylabel=curves.y_label, title=curves.title)
    axes.legend(frameon=False)
    return figure


def _draw_matrix(matrix: Matrix) -> Figure:
    figure, axes = _new(1.5 + 1.1 * len(matrix.domains), 1 + 0.5 * len(matrix.drafters))
    values = [[float("nan") if s is None else s for s in row] for row in matrix.shares]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(matrix.shares):
        for x, share in enumerate(row):
            text = "–" if share is None else f"{share:.0%}"
            colour = "white" if share is not None and share > 0.6 else "black"
            axes.text(x, y, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(matrix.domains)), labels=matrix.domains)
    axes.set_yticks(range(len(matrix.drafters)), labels=matrix.drafters)
    axes.set_title(f"draft tokens accepted, {matrix.title}")
    return figure


def _draw_timeline(timeline: Timeline) -> Figure:
    from matplotlib.patches import Patch

    figure, axes = _new(9, 1 + 0.45 * len(timeline.lanes))
    rows = {lane: row for row, lane in enumerate(timeline.lanes)}
    for span in timeline.spans:
        width_ms = 1e3 * (span.end_s - span.start_s)
        colour = _ACTIVITIES[span.activity]
        axes.barh(rows[span.lane], width_ms, left=1e3 * span.start_s, height=0.6, color=colour)
    for end_s in timeline.committed_s:
        axes.axvline(1e3 * end_s, color="black", linewidth=0.4)
    axes.set_yticks(range(len(rows)), labels=list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="ms since the session started", title=timeline.title)
    patches = [Patch(color=colour, label=name) for name, colour in _ACTIVITIES.items()]
    figure.legend(handles=patches, frameon=False, ncols=4, loc="outside lower center")
    return figure
