"""The kernel cache: unusable directories, failing compilers, truncated libraries."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecosine.engine.cpu import kernel_library as native
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, kernels_or_reason, load_kernels
from edgecosine.engine.cpu.native_structs import shared_values
from edgecosine.local.kernels import build_kernels
from edgecosine.locks import alone

_COMPILES = b'#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
SOURCE = b"""
int edgecosine_panel() { return 8; } int edgecosine_has_pairs() { return 0; }
const char* edgecosine_instructions() { return "AVX2"; }
const char* edgecosine_fault_of_tiles() { return 0; }
int edgecosine_pack_blocks, edgecosine_prefer_huge_pages;
int edgecosine_pack, edgecosine_linear, edgecosine_attention, edgecosine_decode;
int edgecosine_decode_greedily, edgecosine_rank, edgecosine_draft_step;
long edgecosine_shared_values(long* values, long count) {
  const long found[] = {VALUES};
  for (long i = 0; i < count; i++) values[i] = found[i];
  return count;
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache directory that does not exist yet, and kernels that build quickly."""
    sources = tmp_path / "sources"
    sources.mkdir()
    values = ", ".join(f"(long){value % 2**64}u" for value in shared_values().values())
    source = SOURCE.replace(b"VALUES", values.encode())
    (sources / "kernels.cpp").write_bytes(b'extern "C" {' + source + b"}")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setattr(native, "FLAGS", ("-fPIC", "-shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels_or_reason.cache_clear()
    yield tmp_path / "cache" / "edgecosine" / "kernels"
    kernels_or_reason.cache_clear()


def panel() -> int:
    """Load again, and call the library."""
    kernels_or_reason.cache_clear()
    try:
        return load_kernels().panel
    except KernelsUnavailable as error:
        if "no C++ compiler" in str(error):
            pytest.skip(str(error))
        raise


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes) -> None:
    """Replace the compiler of the machine by a script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "c++").write_bytes(program)
    (folder / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_kernels_are_built_once_and_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert panel() == 8
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".digest", ".so"]
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built twice"))
    assert panel() == 8


def test_tiles_that_are_not_used_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "sources" / "kernels.cpp"
    without = source.read_bytes()
    assert panel() == 8
    source.write_bytes(without.replace(b"tiles() { return 0;", b'tiles() { return "refused";'))
    assert caplog.text == ""
    assert panel() == 8
    assert "AMX-INT8 is not used: reason=refused" in caplog.text


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
    assert ("cannot be cached" in caplog.text) == (fault != "no home")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (_COMPILES + b'printf "Fehler: ung\\374ltig\\n" >&2\nexit 1\n', "failed: Fehler: ung"),
        (_COMPILES + b"exit 1\n", "failed: no message"),
        (b"\0", "cannot be run: Exec format error"),
    ],
)
def test_compiler_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, message: str
) -> None:
    compiler(tmp_path, monkeypatch, program)
    with pytest.raises(KernelsUnavailable, match=message):
        panel()


def test_compiler_that_fails_runs_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    compiler(tmp_path, monkeypatch, _COMPILES + f'echo >>"{runs}"\nexit 1\n'.encode())
    for _ in range(3):
        with pytest.raises(KernelsUnavailable, match="failed"):
            load_kernels()
    assert runs.read_text() == "\n"


def test_nodes_start_after_the_kernels_are_built(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    build_kernels(notes.append)
    assert len(notes) == 1
    assert list(cache.glob("*.so"))
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built twice"))
    build_kernels(notes.append)
    assert panel() == 8
    assert len(notes) == 1


def test_reason_why_there_are_no_kernels_is_given_before_nodes_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, _COMPILES + b"echo 'no room' >&2\nexit 1\n")
    notes: list[str] = []
    build_kernels(notes.append)
    assert "c++ failed: no room" in notes[1]


def test_kernels_are_unavailable_without_a_writable_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_bytes(b"")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KernelsUnavailable, match="no directory to build them in"):
        panel()


def test_one_process_builds_and_the_others_wait_for_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert panel() == 8
    [library] = cache.glob("*.so")
    away = library.rename(cache.parent / library.name)
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built twice"))

    def build_elsewhere() -> None:
        away.rename(library)
        elsewhere.close()

    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(alone(cache, lambda: pytest.fail("no other process builds yet")))
        monkeypatch.setattr(native, "_note_wait", build_elsewhere)
        assert panel() == 8


def test_slow_compiler_ends_with_the_processes_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    slow = f'exec 3>"{alive}"\nsleep 600 &\nwait\n'.encode()
    compiler(tmp_path, monkeypatch, _COMPILES + slow)
    monkeypatch.setattr(native, "BUILD_TIMEOUT_S", 0.2)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(KernelsUnavailable, match=r"took over"):
            panel()
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""  # the end: no process holds the other side
    finally:
        os.close(reader)
