"""Figures have their number of samples, and intervals only with enough samples; records of long
measurements are written after each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecosine.errors import LabError
from edgecosine.lab.bench.table import read_report, tables
from edgecosine.lab.figures import LEAST_SAMPLES, counted, interval, keeping

RECORDS = sorted((Path(__file__).parents[2] / "docs" / "measured").glob("*.json"))


def test_few_samples_have_no_interval() -> None:
    for n in range(1, LEAST_SAMPLES):
        figure = interval([float(number) for number in range(n)])
        assert (figure.low, figure.high, figure.n) == (None, None, n)
        assert str(figure).endswith(f"(n = {n})")
    figure = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high
    assert str(figure) == f"3.00 ({figure.low:.2f} to {figure.high:.2f}, n = 5)"


def test_counts_are_shown_without_interval() -> None:
    assert str(counted(7, "requests")) == "7.00"


def test_record_is_on_disk_after_each_part(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    keep = keeping(path, weather="none")
    runs: list[dict[str, Any]] = []
    for number in range(3):
        runs.append({"number": number})
        keep({"ratio": interval([1.0] * (number + 1))}, runs, costs={"step": number})
        record = json.loads(path.read_text())
        assert record["runs"] == runs
        assert record["figures"]["ratio"]["n"] == number + 1
        assert record["figures"]["ratio"]["low"] is None
        assert record["environment"]["weather"] == "none"
        assert record["environment"]["costs"] == {"step": number}
    keeping(None)({}, runs)
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]


def run(policy: str, repeat: int, tokens_per_s: float) -> dict[str, Any]:
    return {
        "cell": "eight", "policy": policy, "repeat": repeat, "tokens_per_s": tokens_per_s,
        "latency_s": {"mean": 1.0}, "temperature": 0.0, "texts": [], "first_job": 0,
        "weather": {"delay_ms": 0.15}, "load": {"kind": "closed", "concurrency": 8},
    }  # fmt: skip


@pytest.mark.parametrize(("repeats", "shown"), [(2, "–"), (5, "1.50 to 1.50")])
def test_table_of_a_record_without_sample_numbers_is_made_from_its_runs(
    repeats: int, shown: str
) -> None:
    runs = [
        run(policy, repeat, speed)
        for repeat in range(repeats)
        for policy, speed in (("target-alone", 100.0), ("edgecosine", 150.0))
    ]
    stale = {"eight_over_target_alone": {"value": 9.0, "low": 8.0, "high": 10.0, "unit": "ratio"}}
    made = tables({"figures": stale, "runs": runs})
    assert f"| `eight_over_target_alone` | 1.50 | {shown} | {repeats} | ratio |" in made
    assert f"| edgecosine | 150 (1.00 s, n = {repeats}) |" in made


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_each_record_of_the_documentation_has_a_table_of_its_figures(record: Path) -> None:
    report = read_report(record)
    made = tables(report)
    for name, figure in report["figures"].items():
        assert f"| `{name}` | {figure['value']:.2f} |" in made


@pytest.mark.parametrize("content", ["", "[]", "7", '{"figures": {}}'])
def test_other_files_are_refused_as_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(LabError, match=r"record\.json is no record of a measurement"):
        read_report(path)
