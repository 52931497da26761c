"""Where kernels are kept: places that cannot be used, compilers that fail, libraries cut short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecosine.engine.cpu import kernel_library as native
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels

_COMPILES = b'#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
SOURCE = b"""
int edgecosine_panel() { return 8; } int edgecosine_has_pairs() { return 0; }
int edgecosine_has_bytes() { return 0; } int edgecosine_pack_blocks, edgecosine_prefer_huge_pages;
int edgecosine_pack, edgecosine_linear, edgecosine_attention, edgecosine_decode;
int edgecosine_rank, edgecosine_grow;
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that is not there yet, and kernels that are quickly built."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernels.cpp").write_bytes(b'extern "C" {' + SOURCE + b"}")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setattr(native, "FLAGS", ("-fPIC", "-shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_kernels.cache_clear()
    yield tmp_path / "cache" / "edgecosine" / "kernels"
    load_kernels.cache_clear()


def panel() -> int:
    """Load once more, and use what was loaded."""
    load_kernels.cache_clear()
    try:
        return load_kernels().panel
    except KernelsUnavailable as error:
        if "no C++ compiler" in str(error):
            pytest.skip(str(error))
        raise


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes) -> None:
    """Put a compiler of our own in the place of the machine's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "c++").write_bytes(program)
    (folder / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_kernels_are_built_once_and_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert panel() == 8
    assert sorted(path.suffix for path in cache.iterdir()) == [".digest", ".so"]
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built twice"))
    assert panel() == 8


@pytest.mark.parametrize("damage", ["cut off", "empty", "without its digest", "other bytes"])
def test_damaged_library_is_rebuilt(cache: Path, damage: str) -> None:
    assert panel() == 8
    [library] = cache.glob("*.so")
    whole = library.read_bytes()
    library.unlink()  # one that is loaded is not to be changed
    if damage == "without its digest":
        library.with_suffix(".digest").unlink()
    content = {"cut off": whole[: len(whole) // 2], "empty": b"", "other bytes": b"\xff" + whole}
    library.write_bytes(content.get(damage, whole))
    assert panel() == 8
    assert len(library.read_bytes()) == len(whole)


@pytest.mark.parametrize("fault", ["a file in its place", "no home", "a home in /proc"])
def test_kernels_are_built_without_a_usable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    if fault == "a file in its place":
        (tmp_path / "cache").write_bytes(b"")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/proc" if fault == "a home in /proc" else "")
    if fault == "no home":
        monkeypatch.setattr("os.getuid", lambda: 54321)
    with caplog.at_level(logging.WARNING, logger="edgecosine"):
        assert panel() == 8
    assert ("cannot be kept" in caplog.text) == (fault != "no home")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (_COMPILES + b'printf "Fehler: ung\\374ltig\\n" >&2\nexit 1\n', "failed: Fehler: ung"),
        (_COMPILES + b"exit 1\n", "failed: no message"),
        (b"\0", "cannot be run: Exec format error"),
    ],
)
def test_compiler_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, said: str
) -> None:
    compiler(tmp_path, monkeypatch, program)
    with pytest.raises(KernelsUnavailable, match=said):
        panel()


def test_kernels_are_unavailable_without_a_writable_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_bytes(b"")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KernelsUnavailable, match="no place to build them"):
        panel()
