"""Times of passes are kept for the next start, and only used where they fit the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.target.pass_table import MAX_BYTES, MAX_TABLES, PassTable, pass_table
from edgecosine.engine.target.profile import REPEATS, ROWS, profile
from tests.support.engines import ScriptedTarget, babble

LOADED = Loaded("m", "none", None, 512, "bitwise", 1000, digest="d")
STEP_S = 0.002


@pytest.fixture
def table(tmp_path: Path) -> PassTable:
    return PassTable(tmp_path / "passes" / "a.json")


class Machine:
    """A target whose passes all take two milliseconds of its clock."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.target = ScriptedTarget(babble(), before_pass=lambda *_: self._pass())

    def _pass(self) -> None:
        self._now_s += STEP_S

    def profile(self, table: PassTable) -> dict[int, float]:
        return profile(self.target, table, lambda: self._now_s)


def test_second_start_measures_one_row_only(table: PassTable) -> None:
    first, second = Machine(), Machine()
    measured = first.profile(table)
    assert measured == pytest.approx(dict.fromkeys(ROWS, STEP_S))
    assert second.profile(table) == pytest.approx(measured)
    saved = len(first.target.batches) - len(second.target.batches)
    assert saved == REPEATS * (len(ROWS) - 1)


@pytest.mark.parametrize("one_row_s", [0.01 * STEP_S, 100 * STEP_S])
def test_table_of_another_speed_is_measured_again(table: PassTable, one_row_s: float) -> None:
    table.write(dict.fromkeys(ROWS, one_row_s))
    measured = Machine().profile(table)
    assert measured == pytest.approx(dict.fromkeys(ROWS, STEP_S))
    assert table.read() == pytest.approx(measured)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b'{"1": "x"}',
        b'{"0": 1.0}',
        b'{"1": -1.0}',
        b"{" + b" " * MAX_BYTES + b"}",
    ],
)
def test_damaged_table_is_deleted(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(damaged)
    assert PassTable(path).read() == {}
    assert not path.exists()


def test_oldest_tables_go(tmp_path: Path) -> None:
    for number in range(MAX_TABLES + 3):
        path = tmp_path / f"{number}.json"
        PassTable(path).write({1: 0.1})
        os.utime(path, (number, number))
    PassTable(tmp_path / "last.json").write({1: 0.1})
    kept = {path.stem for path in tmp_path.iterdir()}
    assert len(kept) == MAX_TABLES
    assert {"last", f"{MAX_TABLES + 2}"} <= kept
    assert "0" not in kept


def test_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "passes").write_text("a file")
    table = PassTable(tmp_path / "passes" / "a.json")
    table.write({1: 0.1})
    assert table.read() == {}


def test_tables_differ_by_model_weights_threads_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = Loaded("m", "none", None, 512, "bitwise", 1000, digest="d", form="int8")
    options = LoadOptions("m")
    tables = [
        pass_table(options, LOADED, ""),
        pass_table(options, other, ""),
        pass_table(LoadOptions("m", threads=2), LOADED, ""),
        pass_table(options, LOADED, "[0]"),
    ]
    assert len({repr(each) for each in tables}) == len(tables)
    assert repr(pass_table(options, LOADED, "")) == repr(tables[0])
