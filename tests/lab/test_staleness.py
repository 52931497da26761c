"""A record is stale when the code that it describes has changed since its commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.lab.bench.staleness import staleness

RECORD = Path(__file__).parents[2] / "docs" / "measured" / "eight-avx2.json"


def git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(root: Path, path: str) -> str:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.read_text() + "x" if file.exists() else "x")
    git(root, "add", ".")
    git(root, "commit", "-qm", path)
    return git(root, "rev-parse", "--short", "HEAD")


def test_record_is_stale_after_a_change_of_the_runtime_and_of_nothing_else(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    made = commit(tmp_path, "edgecosine/engine/a.py")
    record = {"environment": {"commit": made, "dirty": False}}
    assert staleness(record, tmp_path) == f"current: made with commit {made}"
    commit(tmp_path, "docs/a.md")
    commit(tmp_path, "edgecosine/lab/a.py")
    assert staleness(record, tmp_path).startswith("current")
    commit(tmp_path, "edgecosine/engine/a.py")
    commit(tmp_path, "edgecosine/engine/a.py")
    commit(tmp_path, "edgecosine/balance/a.py")
    assert staleness(record, tmp_path) == (
        f"STALE: made with commit {made}; commits since then: balance 1, engine 2"
    )


@pytest.mark.parametrize("environment", [{}, {"commit": None}, {"commit": "0123abc"}])
def test_age_without_history_is_unknown(environment: dict[str, str], tmp_path: Path) -> None:
    assert staleness({"environment": environment}, tmp_path).startswith("age unknown: ")


def test_table_begins_with_the_age_of_its_record() -> None:
    done = CliRunner().invoke(main, ["bench", "table", str(RECORD)])
    assert done.exit_code == 0
    made = json.loads(RECORD.read_text())["environment"]["commit"]
    ages = (f"STALE: made with commit {made}", f"current: made with commit {made}", "age unknown: ")
    assert done.output.startswith(ages)
    assert "| target-alone |" in done.output
