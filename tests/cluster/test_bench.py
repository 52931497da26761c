"""The benchmark on whole clusters: its runs, their record, and its figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.cli.bench import RATES_PER_S
from edgecosine.cli.up import split_cores
from edgecosine.lab.bench.cells import all_cells, only, schedule
from edgecosine.lab.bench.environments import environments
from edgecosine.lab.bench.report import BenchReport
from edgecosine.lab.bench.runner import BenchSettings
from edgecosine.lab.bench.schedule import run_bench
from tests.support.forked_nodes import spawn
from tests.support.mqtt import run_patiently

NUM_POLICIES = 5


@pytest.mark.timeout(300)
def test_runs_of_a_cell_give_a_record_that_the_command_prints_and_plots(tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    target_cores, drafter_cores = split_cores()
    settings = BenchSettings(
        ballast=1, requests=2, max_tokens=24, network="relays", drafters=("ngram",),
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip
    how = {"rates_per_s": list(RATES_PER_S), "keeps_clusters": False, "policies": list[str]()}
    report = BenchReport(record, {**asdict(settings), **how})
    steps = schedule(only(all_cells(*RATES_PER_S), ["loopback"]), 1, settings.requests)
    run_patiently(run_bench(steps, environments(settings, print, spawn), report, print))

    written = json.loads(record.read_text())
    runs = written["runs"]
    assert [run["cell"] for run in runs] == ["loopback"] * NUM_POLICIES
    assert all(run["num_tokens"] == 48 for run in runs)
    assert [run["first_prompt"] for run in runs] == [6 * place for place in range(len(runs))]
    assert {run.get("compared") for run in runs} == {None, 2}
    assert written["figures"]["round_overhead_ms"]["value"] > 0
    [traced] = runs[-1]["requests"]
    assert len(traced["rounds"]) == 1 + sum(traced["acceptance_histogram"])

    words = ["--ballast", "1", "--requests", "2", "--max-tokens", "24", "--repeats", "1"]
    words += ["--network", "relays", "--drafter", "ngram", "--only", "loopback"]
    resumed = CliRunner().invoke(main, ["bench", *words, "--json", str(record), "--resume"])
    assert f"{NUM_POLICIES} of {NUM_POLICIES} runs are recorded already" in resumed.output
    assert "identical_share: 1.00" in resumed.output
    drawn = CliRunner().invoke(main, ["bench", "plot", str(record), "--out", str(tmp_path)])
    assert drawn.exit_code == 0 or "matplotlib" in drawn.output
