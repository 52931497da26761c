"""Figures of the forward passes come from the runs of one repetition."""

from __future__ import annotations

from typing import Any

from edgecosine.lab.bench.passes import figures as cells
from edgecosine.lab.bench.passes.figures import pass_figures, verdicts
from edgecosine.lab.bench.passes.run_passes import CELLS, START


def _run(engine: str, cell: str, repeat: int, *seconds: float) -> dict[str, Any]:
    return {"engine": engine, "cell": cell, "repeat": repeat, "seconds": list(seconds)}


def test_ratios_are_taken_within_a_repetition_from_the_least_times() -> None:
    runs = [
        _run("int8", cells.ROW, 0, 4.0, 2.0),
        _run("llamacpp int8", cells.ROW, 0, 4.0),
        _run("int8", cells.ROW, 1, 6.0),
        _run("llamacpp int8", cells.ROW, 1, 4.0, 9.0),
        _run("int8", cells.ROW, 2, 5.0),  # llama.cpp's is missing
    ]
    figures = pass_figures(runs, 1)
    assert figures["int8_row_over_llamacpp"].value == 1.0  # the median of 0.5 and 1.5
    assert figures["int8_row_over_llamacpp"].n == 2
    assert figures["int8, 1 x 1"].value == 5000.0
    assert "int8_8_rows_over_row" not in figures


def test_peak_share_counts_products_of_64_rows() -> None:
    runs = [
        {"engine": "peak", "repeat": 0, "products_per_s": 1e6},
        _run("int8", cells.MANY_ROWS, 0, 0.5),
    ]
    assert pass_figures(runs, 5000)["peak_share"].value == 0.64


def test_verdict_of_a_missed_bar_says_missed() -> None:
    runs = [
        _run("int8", cells.ROW, 0, 1.0),
        _run("int8", cells.EIGHT_ROWS, 0, 1.2),
        _run("llamacpp int8", cells.ROW, 0, 2.0),
    ]
    met, missed = verdicts(pass_figures(runs, 1))
    assert met.startswith("int8_row_over_llamacpp")
    assert met.endswith("met")
    assert missed.startswith("int8_8_rows_over_row")
    assert missed.endswith("MISSED")


def test_sessions_of_a_cell_have_different_tokens_behind_equal_starts() -> None:
    for cell in CELLS:
        order = cell.order(range(10_000), "int8", flash=False)
        assert len({tuple(tokens) for tokens in order.tokens}) == cell.sessions
        assert {len(tokens) - order.start for tokens in order.tokens} == {cell.width}
        assert order.start in {0, START}
