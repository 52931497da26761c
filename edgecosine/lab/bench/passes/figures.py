"""Figures of the forward passes, computed from the benchmark's runs.

A run has the seconds of one engine in one cell. Ratios are taken within a repetition, in which all
engines take turns. Figures without runs are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgecosine.lab.figures import Figure, counted, interval

ROW, EIGHT_ROWS, MANY_ROWS, PLAIN, PREFILL = "1 x 1", "1 x 8", "8 x 8", "plain 8", "prefill"
"""Names of cells: sessions x rows, greedy decoding of eight sessions, and a prompt."""
DRAFT, DRAFTS = "draft 1", "draft 8"
DRAFTER: Final = "drafter"
LLAMACPP: Final = "llamacpp"

Run = Mapping[str, Any]

_RATIOS: Final = (
    ("int8_row_over_llamacpp", ("int8", ROW), (f"{LLAMACPP} int8", ROW)),
    ("int8_8_rows_over_row", ("int8", EIGHT_ROWS), ("int8", ROW)),
    ("int8_64_rows_over_bfloat16", ("int8", MANY_ROWS), ("bfloat16", MANY_ROWS)),
    ("int8_row_over_bfloat16", ("int8", ROW), ("bfloat16", ROW)),
    ("plain_8_over_llamacpp_8", (f"{LLAMACPP} int8", PLAIN), ("int8", PLAIN)),
    ("prefill_over_llamacpp", (f"{LLAMACPP} int8", PREFILL), ("int8", PREFILL)),
    ("int4_row_over_llamacpp", ("int4", ROW), (f"{LLAMACPP} int4", ROW)),
    ("int4_row_over_int8", ("int4", ROW), ("int8", ROW)),
    ("int4_8_rows_over_row", ("int4", EIGHT_ROWS), ("int4", ROW)),
    ("int4_64_rows_over_int8", ("int4", MANY_ROWS), ("int8", MANY_ROWS)),
    ("drafter_8_over_1", (DRAFTER, DRAFTS), (DRAFTER, DRAFT)),
)
"""Ratios of seconds. Those that compare tokens per second have llama.cpp in the numerator."""

BARS: Final = {
    "int8_row_over_llamacpp": ("at most", 1.0),
    "int8_8_rows_over_row": ("at most", 1.15),
    "int8_64_rows_over_bfloat16": ("at most", 0.55),
    "plain_8_over_llamacpp_8": ("at least", 4.0),
    "prefill_over_llamacpp": ("at least", 1.0),
    "peak_share": ("at least", 0.7),
    "drafter_8_over_1": ("at most", 2.2),
}
"""Expectations on a processor with AVX512-VNNI."""


def pass_figures(runs: Sequence[Run], products_per_row: int) -> dict[str, Figure]:
    """All figures for which the runs have data, by name."""
    figures = {}
    for name, over, under in _RATIOS:
        if samples := _ratios(runs, over, under):
            figures[name] = interval(samples)
    if shares := _peak_shares(runs, products_per_row):
        figures["peak_share"] = interval(shares)
    for engine, cell in sorted({(run["engine"], run["cell"]) for run in runs if "cell" in run}):
        name = f"{engine}, {cell}"
        seconds = _seconds(runs, engine, cell).values()
        figures[name] = interval([1e3 * s for s in seconds], unit="ms")
    for run in runs:
        if "perplexity" in run:
            figures[f"perplexity_{run['engine']}"] = counted(run["perplexity"], "per token")
    return figures


def verdicts(figures: Mapping[str, Figure]) -> list[str]:
    """A line for each bar whose figure was measured, which says whether the figure meets it."""
    lines = []
    for name, (bound, bar) in BARS.items():
        if (figure := figures.get(name)) is not None:
            is_met = figure.value <= bar if bound == "at most" else figure.value >= bar
            lines.append(f"{name}: {figure} {bound} {bar}: {'met' if is_met else 'MISSED'}")
    return lines


def _ratios(runs: Sequence[Run], over: tuple[str, str], under: tuple[str, str]) -> list[float]:
    ours, theirs = _seconds(runs, *over), _seconds(runs, *under)
    return [ours[repeat] / theirs[repeat] for repeat in sorted(ours.keys() & theirs.keys())]


def _peak_shares(runs: Sequence[Run], products_per_row: int) -> list[float]:
    """Products per second of all linear layers in a pass of 64 rows, over those of a loop of the
    same instruction. The time is that of the whole pass."""
    peaks = {run["repeat"]: run["products_per_s"] for run in runs if "products_per_s" in run}
    passes = _seconds(runs, "int8", MANY_ROWS)
    return [
        64 * products_per_row / passes[repeat] / peaks[repeat]
        for repeat in sorted(passes.keys() & peaks.keys())
    ]


def _seconds(runs: Sequence[Run], engine: str, cell: str) -> dict[int, float]:
    return {
        run["repeat"]: min(run["seconds"])
        for run in runs
        if run["engine"] == engine and run.get("cell") == cell
    }
