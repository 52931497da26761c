"""Figures have their number of samples, and intervals only with enough samples; records of long
measurements are written after each part."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgecosine.errors import LabError
from edgecosine.lab.bench.table import figure_table, read_report, tables
from edgecosine.lab.figures import LEAST_SAMPLES, counted, interval, keeping
from edgecosine.lab.paired_runs import ratio_figure

RECORDS = sorted((Path(__file__).parents[2] / "docs" / "measured").glob("*.json"))


def test_few_samples_have_no_interval() -> None:
    for n in range(1, LEAST_SAMPLES):
        figure = interval([float(number) for number in range(n)])
        assert (figure.low, figure.high, figure.n) == (None, None, n)
        assert str(figure) == f"runs: {', '.join(f'{number}.00' for number in range(n))}"
    figure = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high
    assert str(figure) == f"3.00 ({figure.low:.2f} to {figure.high:.2f}, n = 5)"


def test_table_shows_the_runs_of_few_repetitions_and_p_of_many() -> None:
    few, many = ratio_figure([1.5, 1.4], [1.0, 1.0]), ratio_figure([1.5] * 5, [1.0] * 5)
    made = figure_table({"few": asdict(few), "many": asdict(many)})
    assert "| `few` | runs: 1.50, 1.40 | – | – | 2 | ratio |" in made
    assert "| `many` | 1.50 | 1.50 to 1.50 | 0.031 | 5 | ratio |" in made
    assert "below n = 5" in made
    assert "| p |" not in figure_table({"few": asdict(few)})


def test_counts_are_shown_without_interval() -> None:
    assert str(counted(7, "requests")) == "7.00"


def test_record_is_on_disk_after_each_part(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    keep = keeping(path, network="none")
    runs: list[dict[str, Any]] = []
    for number in range(3):
        runs.append({"number": number})
        keep({"ratio": interval([1.0] * (number + 1))}, runs, costs={"step": number})
        record = json.loads(path.read_text())
        assert record["runs"] == runs
        assert record["figures"]["ratio"]["n"] == number + 1
        assert record["figures"]["ratio"]["low"] is None
        assert record["environment"]["network"] == "none"
        assert record["environment"]["costs"] == {"step": number}
    keeping(None)({}, runs)
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]


def run(policy: str, repeat: int, tokens_per_s: float) -> dict[str, Any]:
    return {
        "cell": "eight", "policy": policy, "repeat": repeat, "tokens_per_s": tokens_per_s,
        "latency_s": {"mean": 1.0}, "temperature": 0.0, "texts": [], "first_job": 0,
        "network": {"delay_ms": 0.15}, "load": {"kind": "closed", "concurrency": 8},
    }  # fmt: skip


def test_table_has_the_figures_of_the_record_whatever_is_computed_today() -> None:
    runs = [run(policy, 0, 100.0) for policy in ("target-alone", "edgecosine")]
    held = {"eight_over_target_alone": {"value": 9.0, "low": 8.0, "high": 10.0, "unit": "ratio"}}
    made = tables({"figures": held, "runs": runs})
    assert "| `eight_over_target_alone` | 9.00 | 8.00 to 10.00 | – | ratio |" in made
    assert "| edgecosine | 100 (1.00 s, n = 1) |" in made


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_each_record_of_the_documentation_has_a_table_of_its_figures(record: Path) -> None:
    report = read_report(record)
    made = tables(report)
    for name, figure in report["figures"].items():
        raw = figure.get("raw")
        shown = (
            f"runs: {', '.join(f'{one:.2f}' for one in raw)}" if raw else f"{figure['value']:.2f}"
        )
        assert f"| `{name}` | {shown} |" in made


@pytest.mark.parametrize("content", ["", "[]", "7", '{"figures": {}}'])
def test_other_files_are_refused_as_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(LabError, match=r"record\.json is no record of a measurement"):
        read_report(path)
