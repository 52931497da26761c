"""Client ids persist, differ, and are secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecosine.security.client_ids import SECRET_FILE, ClientIds


def test_ids_survive_a_restart_and_differ_between_directories(tmp_path: Path) -> None:
    ids = ClientIds.kept_in(tmp_path / "state")
    assert ids.of("a") == ClientIds.kept_in(tmp_path / "state").of("a")
    assert ids.of("a").startswith("a-")
    others = {ids.of("b")[2:], ClientIds().of("a")[2:], ClientIds.kept_in(tmp_path).of("a")[2:]}
    assert len({ids.of("a")[2:], *others}) == 4
    assert (tmp_path / "state" / SECRET_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"abc", b"x" * 33, b"0" * 1000])
def test_damaged_secret_is_replaced(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / SECRET_FILE).write_bytes(damage)
    assert ClientIds.kept_in(tmp_path).of("a") == ClientIds.kept_in(tmp_path).of("a")


def test_secret_is_not_shown(tmp_path: Path) -> None:
    ids = ClientIds.kept_in(tmp_path)
    assert (tmp_path / SECRET_FILE).read_text().strip() not in repr(ids) + ids.of("a")
