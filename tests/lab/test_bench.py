"""The benchmark's schedule: the order of runs, each of which is made exactly once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import (
    ALONE,
    CELL_NAMES,
    OURS,
    Cell,
    Step,
    all_cells,
    num_requests,
    num_warm_up,
    only,
    quick_cells,
    schedule,
)
from edgecosine.lab.bench.charts import acceptance, compared, frontiers
from edgecosine.lab.bench.record import ClosedLoad
from edgecosine.lab.bench.report import BenchReport, seconds_left
from edgecosine.lab.bench.schedule import run_bench
from edgecosine.lab.bench.table import policy_table
from edgecosine.lab.load_generator import prompts_in_turn
from edgecosine.lab.zoo.fresh_prompts import fresh_prompts
from tests.lab.bench_runs import made_run

ONE = ClosedLoad(1)
CELLS = (
    Cell("near", ONE, (ALONE, OURS, "specinfer")),
    Cell("liars", ONE, (ALONE, OURS), site="hostile"),
    Cell("far", ONE, (ALONE, OURS)),
)
SETTINGS = {"ballast": 4, "drafters": ()}


class FakeStages:
    """Makes every run at once; fails before one of them."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self._breaks_at = breaks_at
        self.opened: list[str] = []
        self.num_closed = 0
        self.played: list[tuple[str, int, str]] = []

    @property
    def notes(self) -> Mapping[str, Any]:
        return {"networks": "fake"}

    @asynccontextmanager
    async def open(self, cell: Cell) -> AsyncIterator[FakeStages]:
        self.opened.append(cell.name)
        try:
            yield self
        finally:
            self.num_closed += 1

    async def play(self, step: Step) -> dict[str, Any]:
        if len(self.played) == self._breaks_at:
            raise LabError("cut off")
        self.played.append((step.cell.name, step.repeat, step.policy))
        return made_run(step.cell.name, step.policy, 10.0, step.repeat)


def bench(environments: FakeStages, report: BenchReport, repeats: int = 2) -> list[str]:
    messages: list[str] = []
    asyncio.run(run_bench(schedule(CELLS, repeats), environments.open, report, messages.append))
    return messages


def test_cells_run_site_by_site_with_one_repetition_after_the_other() -> None:
    places = [(step.cell.site, step.cell.name, step.repeat) for step in schedule(CELLS, 2)]
    assert list(dict.fromkeys(places)) == [
        ("network", "near", 0), ("network", "near", 1),
        ("network", "far", 0), ("network", "far", 1),
        ("hostile", "liars", 0), ("hostile", "liars", 1),
    ]  # fmt: skip


def test_policies_are_equally_often_at_each_place_of_a_repetition() -> None:
    cell = max(CELLS, key=lambda cell: len(cell.policies))
    steps = schedule([cell], 6)
    turns = [[step.policy for step in steps if step.repeat == repeat] for repeat in range(6)]
    assert all(sorted(turn) == sorted(cell.policies) for turn in turns)
    places = Counter(place for turn in turns for place in enumerate(turn))
    assert set(places.values()) == {2}


@pytest.mark.parametrize("cells", [all_cells(0.5, 2.0), quick_cells(all_cells(0.5, 2.0))])
def test_no_two_runs_of_a_record_have_the_same_prompt(cells: tuple[Cell, ...]) -> None:
    taken: list[int] = []
    for step in schedule(cells, 5, 8):
        count = num_warm_up(step.cell) + num_requests(step.cell, 8, step.repeat)
        taken += range(step.first_prompt, step.first_prompt + count)
        if step.cell.load == ClosedLoad(8):
            assert num_requests(step.cell, 8, step.repeat) >= 32
    assert taken == list(range(len(taken)))


def test_no_prompt_comes_twice_in_a_cell_of_real_prompts() -> None:
    prompts = fresh_prompts()
    assert len(set(prompts)) == len(prompts)
    assert not {text for _, text in prompts} & set(prompts_in_turn())
    domains = Counter(domain for domain, _ in prompts)
    assert len(set(domains.values())) == 1
    assert min(domains.values()) >= 200
    schedule(all_cells(0.5, 2.0), 5, 8, len(prompts))
    with pytest.raises(LabError, match="cell single needs 96 different prompts"):
        schedule(all_cells(0.5, 2.0), 1, 8, 95)


def test_every_run_is_made_once_in_the_environment_of_its_site() -> None:
    environments, report = FakeStages(), BenchReport(None, SETTINGS)
    messages = bench(environments, report)
    assert environments.opened == ["near", "near", "far", "far", "liars", "liars"]
    assert environments.num_closed == 6
    assert environments.played == [(s.cell.name, s.repeat, s.policy) for s in schedule(CELLS, 2)]
    assert len(report.runs) == 14
    assert messages[0].startswith("[1/14] near, repetition 1, target-alone: 10 tokens/s")
    assert messages[-1].endswith("; 0 s left")


def test_kept_clusters_serve_all_repetitions_of_a_cell_but_hostile_ones() -> None:
    environments, report = FakeStages(), BenchReport(None, SETTINGS)
    steps = schedule(CELLS, 2)
    running = run_bench(steps, environments.open, report, lambda _: None, keeps_clusters=True)
    asyncio.run(running)
    assert environments.opened == ["near", "far", "liars", "liars"]
    assert environments.played == [(s.cell.name, s.repeat, s.policy) for s in steps]


def test_interrupted_benchmark_resumes(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    broken = FakeStages(breaks_at=7)
    with pytest.raises(LabError, match="cut off"):
        bench(broken, BenchReport(path, SETTINGS))
    assert broken.num_closed == 3
    written = json.loads(path.read_text())
    assert len(written["runs"]) == 7
    fake = {"networks": "fake"}
    assert written["environment"]["notes"] == {"near": fake, "far": fake}

    report, environments = BenchReport(path, SETTINGS), FakeStages()
    report.resume()
    messages = bench(environments, report)
    assert messages[0] == "resuming: 7 of 14 runs are recorded already"
    assert messages[1].startswith("[8/14]")
    assert broken.played + environments.played == [
        (s.cell.name, s.repeat, s.policy) for s in schedule(CELLS, 2)
    ]
    assert len(json.loads(path.read_text())["runs"]) == 14

    again, idle = BenchReport(path, SETTINGS), FakeStages()
    again.resume()
    bench(idle, again)
    assert (idle.opened, idle.played) == ([], [])


def test_record_with_other_settings_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    bench(FakeStages(), BenchReport(path, SETTINGS))
    other = BenchReport(path, {"ballast": 32})
    with pytest.raises(LabError, match="another settings"):
        other.resume()
    new = BenchReport(tmp_path / "none.json", SETTINGS)
    new.resume()
    assert new.runs == []


def test_time_left_is_estimated_from_equal_runs_else_similar_ones() -> None:
    near, liars, far = CELLS
    done = [
        {"cell": "near", "policy": OURS, "took_s": 4.0},
        {"cell": "near", "policy": OURS, "took_s": 6.0},
        {"cell": "near", "policy": ALONE, "took_s": 20.0},
    ]
    assert seconds_left(done, [Step(near, OURS, 2)]) == 5.0
    assert seconds_left(done, [Step(near, "specinfer", 2)]) == 10.0
    assert seconds_left(done, [Step(far, OURS, 0), Step(liars, OURS, 0)]) == 20.0
    assert seconds_left(done, []) == 0
    assert seconds_left([], [Step(near, OURS, 0)]) is None


def test_cell_names_are_unique_and_unknown_ones_are_refused() -> None:
    cells = all_cells(0.5, 2.0)
    assert max(Counter(CELL_NAMES).values()) == 1
    assert [cell.name for cell in only(cells, ["rtt15", "single"])] == ["single", "rtt15"]
    assert only(cells, []) == cells
    with pytest.raises(LabError, match="no cell nowhere here; there are single, four"):
        only(cells, ["nowhere"])


def test_policies_can_be_chosen_and_cells_without_them_are_left_out() -> None:
    cells = all_cells(0.5, 2.0)
    chosen = only(cells, ["single", "rtt15", "four"], ["edgecosine", "colocated"])
    assert [cell.policies for cell in chosen[:2]] == [("colocated", "edgecosine")] * 2
    assert [cell.name for cell in only(cells, [], ["hf-plain"])] == ["single"]
    with pytest.raises(LabError, match="no cell here measures hf-plain; there are target-alone"):
        only(cells, ["eight"], ["hf-plain"])


def test_only_comparable_runs_are_drawn_together() -> None:
    def run(cell: str, policy: str, concurrency: int, **more: Any) -> dict[str, Any]:
        share = {"python": {"proposed": 2, "accepted": 1}}
        return made_run(
            cell, policy, 10.0 * concurrency,
            load={"kind": "closed", "concurrency": concurrency}, inter_token_s={"p50": 0.1},
            network={"delay_ms": 0.0, "jitter_ms": 0.0, "loss": 0.0, "rate_mbps": None},
            drafters={"python-0": share}, **more,
        )  # fmt: skip

    runs = [
        run("single", OURS, 1),
        run("eight", OURS, 8),
        run("eight", "hf-batched", 8),
        run("ablations", f"{OURS}-without-fusion", 1),
        run("ablations", OURS, 1),
        run("hostile", OURS, 2, site="hostile"),
        run("loopback", OURS, 2, site="loopback"),
    ]
    assert [each["cell"] for each in compared(runs)] == ["single", "eight", "eight"]
    [frontier] = frontiers(runs)
    assert frontier.curves == {OURS: [(100.0, 10.0), (100.0, 80.0)]}
    assert {matrix.title for matrix in acceptance(runs)} == {OURS, "hf-batched"}
    table = policy_table(runs)
    assert "| edgecosine | 10 (10.00 s, n = 1) | 80 (1.25 s, n = 1) |" in table
    assert "| hf-batched | – | 80 (1.25 s, n = 1) |" in table
    assert "without" not in table


def test_command_refuses_an_unknown_cell() -> None:
    done = CliRunner().invoke(main, ["bench", "--quick", "--only", "loss"])
    assert done.exit_code == 1
    assert "no cell loss here; there are single, eight, rtt15" in done.output


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_command_starts_clusters_and_gives_figures_and_plots(tmp_path: Path) -> None:
    cells, record = ("slow", "loopback"), tmp_path / "bench.json"
    words = ["bench", *(word for cell in cells for word in ("--only", cell)), "--drafter", "ngram"]
    words += ["--ballast", "1", "--requests", "2", "--max-tokens", "24", "--repeats", "1"]
    words += ["--network", "relays", "--json", str(record)]
    command = [sys.executable, "-m", "edgecosine", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "identical_share: 1.00" in done.stdout
    report = json.loads(record.read_text())
    runs = report["runs"]
    assert [run["cell"] for run in runs] == [cell for cell in cells for _ in range(5)]
    assert all(run["num_tokens"] == 48 for run in runs)
    assert [run["first_prompt"] for run in runs] == [6 * place for place in range(len(runs))]
    assert {run.get("compared") for run in runs} == {None, 2}
    assert report["figures"]["round_overhead_ms"]["value"] > 0
    [traced] = runs[-1]["requests"]
    assert len(traced["rounds"]) == 1 + sum(traced["acceptance_histogram"])
    drawn = CliRunner().invoke(main, ["bench", "plot", str(record), "--out", str(tmp_path)])
    assert drawn.exit_code == 0 or "matplotlib" in drawn.output
