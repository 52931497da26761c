"""A small disk that can be filled: a tmpfs with a name of the lab.

The disk of a killed run is unmounted by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgecosine.errors import LabError
from edgecosine.lab.network.netns.namespaces import is_left_over, own_name

_SIZE: Final = "32m"
"""SQLite lets its log grow to 4 MB before it reuses it."""
_PIECE: Final = bytes(1 << 16)
_MOUNTS: Final = Path("/proc/mounts")
_FILLING: Final = "filling"


class Disk:
    """A mounted disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Write until the disk is full to the last byte."""
        with (self.path / _FILLING).open("ab", buffering=0) as file:
            part = _PIECE
            while part:
                try:
                    file.write(part)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    part = part[: len(part) // 2]

    def empty(self) -> None:
        """Free the space again."""
        (self.path / _FILLING).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk() -> Iterator[Disk]:
    """A disk of some megabytes, unmounted after the block.

    Raises LabError.
    """
    _remove_leftovers()
    path = Path(tempfile.mkdtemp(prefix="edgecosine-disk-"))
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", own_name("disk"), str(path))
        try:
            yield Disk(path)
        finally:
            # Lazily, because a process that was just killed may still hold a file.
            _run("umount", "--lazy", str(path))
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers() -> None:
    for line in _MOUNTS.read_text().splitlines() if _MOUNTS.exists() else ():
        name, path, kind, *_ = line.split()
        if kind == "tmpfs" and is_left_over(name):
            _run("umount", "--lazy", path)
            shutil.rmtree(path, ignore_errors=True)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LabError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
