"""Plots and tables of a record with known numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.errors import LabError
from edgecosine.lab.bench.charts import Span, acceptance, frontiers, rtt_sweeps, timeline, timelines
from edgecosine.lab.bench.table import figure_table, fill, places, policy_table, read_report, tables

ROOT = Path(__file__).parents[2]
SPEED = {"target-alone": 60.0, "edgecosine": 150.0}


def _run(
    policy: str, concurrency: int, delay_ms: float, repeat: int, **more: Any
) -> dict[str, Any]:
    """Speculation gains less with longer delays; the machine is slower in the second repetition."""
    tokens_per_s = SPEED[policy] * concurrency**0.5 / (1 + repeat)
    if policy == "edgecosine":
        tokens_per_s /= 1 + delay_ms / 10
    return {
        "policy": policy,
        "load": {"kind": "closed", "concurrency": concurrency},
        "temperature": 0.0,
        "network": {"delay_ms": delay_ms, "jitter_ms": 0.0, "loss": 0.0, "rate_mbps": None},
        "repeat": repeat,
        "tokens_per_s": tokens_per_s,
        "latency_s": {"mean": 128 * concurrency / tokens_per_s},
        "inter_token_s": {"p50": concurrency / tokens_per_s},
        "drafters": {
            "python-0": {"python": {"proposed": 10, "accepted": 8}},
            "ngram-1": {"python": {"proposed": 4, "accepted": 1},
                        "home": {"proposed": 0, "accepted": 0}},
        } if policy == "edgecosine" else {},
        **more,
    }  # fmt: skip


ROUNDS = [
    {
        "started_s": 0.010, "submitted_s": 0.020, "verified_s": 0.050, "pass_s": 0.025,
        "num_nodes": 4, "num_accepted": 2,
        "drafts": [{"drafter": "python-0", "asked_s": 0.010, "ended_s": 0.020, "compute_s": 0.004,
                    "num_tokens": 4}],
    },
    {
        "started_s": 0.050, "submitted_s": 0.050, "verified_s": 0.070, "pass_s": 0.020,
        "num_nodes": 0, "num_accepted": 0, "drafts": [],
    },
]  # fmt: skip

RUNS = [
    _run(policy, concurrency, delay_ms, repeat)
    for repeat in range(3)
    for delay_ms in (0.15, 10.0)
    for concurrency in (1, 4)
    for policy in SPEED
]
RUNS.append(
    _run("edgecosine", 1, 0.15, 3, requests=[{"domain": "home", "rounds": []},
                                             {"domain": "python", "rounds": ROUNDS}])
)  # fmt: skip
FIGURES = {
    "single_over_target_alone": {"value": 2.5, "low": 2.4, "high": 2.6, "unit": "ratio", "n": 5},
    "eight_over_target_alone": {"value": 1.1, "low": None, "high": None, "unit": "ratio", "n": 4},
}
REPORT = {"figures": FIGURES, "runs": RUNS}


def test_frontier_has_a_point_for_each_concurrency_at_its_median() -> None:
    near, far = frontiers(RUNS)
    assert (near.title, far.title) == ("RTT 0.3 ms, temperature 0", "RTT 20 ms, temperature 0")
    assert near.labels == ("1", "4")
    one, four = near.curves["target-alone"]
    assert one == pytest.approx((1e3 / 30, 30.0))
    assert four == pytest.approx((4e3 / 60, 60.0))


def test_sweep_takes_ratios_within_a_repetition() -> None:
    (one, _) = rtt_sweeps(RUNS)
    assert one.title == "1 at a time, temperature 0"
    assert list(one.curves) == ["edgecosine"]
    near, far = one.curves["edgecosine"]
    assert near == pytest.approx((0.3, 2.5 / 1.015))
    assert far == pytest.approx((20.0, 1.25))


def test_acceptance_is_a_share_where_something_was_proposed() -> None:
    (matrix,) = acceptance(RUNS)
    assert matrix.title == "edgecosine"
    assert matrix.drafters == ("ngram", "python")
    assert matrix.domains == ("home", "python")
    assert matrix.shares == ((None, 0.25), (None, 0.8))


def test_timeline_shows_network_draft_waiting_and_verification() -> None:
    scenario = timeline("one", ROUNDS)
    assert scenario.lanes == ("target", "python-0")
    assert scenario.committed_s == (0.050, 0.070)
    expected = [
        Span("target", "waiting", 0.020, 0.025),
        Span("target", "verify", 0.025, 0.050),
        Span("python-0", "network", 0.010, 0.013),
        Span("python-0", "draft", 0.013, 0.017),
        Span("python-0", "network", 0.017, 0.020),
        Span("target", "verify", 0.050, 0.070),
    ]
    assert [(s.lane, s.activity) for s in scenario.spans] == [
        (s.lane, s.activity) for s in expected
    ]
    for span, wanted in zip(scenario.spans, expected, strict=True):
        assert (span.start_s, span.end_s) == pytest.approx((wanted.start_s, wanted.end_s))


def test_timeline_takes_the_first_request_that_was_recorded() -> None:
    assert [scenario.title for scenario in timelines(RUNS)] == ["edgecosine, python"]


def test_table_has_policies_in_rows_on_the_fastest_network() -> None:
    assert policy_table(RUNS).splitlines() == [
        "| policy | 1 at a time, tokens/s (latency) | 4 at a time, tokens/s (latency) |",
        "| --- | --: | --: |",
        "| target-alone | 30 (4.27 s, n = 3) | 60 (8.53 s, n = 3) |",
        "| edgecosine | 62 (2.17 s, n = 4) | 148 (3.46 s, n = 3) |",
    ]


def test_table_of_figures_has_numbers_of_samples_and_intervals_where_these_are_enough() -> None:
    assert figure_table(FIGURES).splitlines()[2:] == [
        "| `single_over_target_alone` | 2.50 | 2.40 to 2.60 | 5 | ratio |",
        "| `eight_over_target_alone` | 1.10 | – | 4 | ratio |",
    ]


def test_only_the_marked_table_is_replaced() -> None:
    document = "a\n<!-- table of x.json -->\nold\n<!-- end of table -->\nb\n"
    filled = fill(document, "x.json", "new\n")
    assert filled == "a\n<!-- table of x.json -->\nnew\n<!-- end of table -->\nb\n"
    assert fill(filled, "x.json", "new\n") == filled
    with pytest.raises(LabError, match=r"table of y\.json"):
        fill(document, "y.json", "new\n")


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_tables_in_the_documentation_are_current(document: str) -> None:
    for record, table in places((ROOT / document).read_text()).items():
        assert table == tables(read_report(ROOT / record)), (
            f"run: edgecosine bench table {record} --into {document}"
        )


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(REPORT))
    return path


def test_command_fills_a_document(record: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"<!-- table of {record} -->\n<!-- end of table -->\n")
    done = CliRunner().invoke(main, ["bench", "table", str(record), "--into", str(document)])
    assert done.exit_code == 0, done.output
    assert places(document.read_text()) == {str(record): tables(REPORT)}
    shown = CliRunner().invoke(main, ["bench", "table", str(record)])
    assert shown.stdout.strip() == tables(REPORT).strip()


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_command_draws_every_kind_of_plot_the_same_each_time(
    record: Path, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for directory in (tmp_path / "one", tmp_path / "two"):
        command = ["bench", "plot", str(record), "--out", str(directory), "--format", kind]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        drawn.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert drawn[0] == drawn[1]
    kinds = {re.match(r"[a-z]+", name)[0] for name in drawn[0]}  # type: ignore[index]
    assert kinds == {"frontier", "rtt", "acceptance", "timeline"}
    assert len(drawn[0]) == 6
