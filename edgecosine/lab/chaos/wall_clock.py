"""Steps the wall clocks of single nodes; the machine's clock is not changed.

A small library, built here and preloaded into the node's process, shifts CLOCK_REALTIME by an
offset in a mapped file. All other clocks are unaffected, as when a clock is set on a real machine.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgecosine.errors import LabError

_SOURCE: Final = Path(__file__).with_name("wall_clock.c")
_COMPILERS: Final = ("cc", "gcc", "clang")
_TIMEOUT_S: Final = 60.0
_SHIFT: Final = struct.Struct("=q")


def why_no_steps() -> str | None:
    """The reason why wall clocks cannot be stepped here; None when they can."""
    if sys.platform != "linux":
        return "clocks are stepped on Linux only"
    return None if _compiler() else "no C compiler"


class WallClocks:
    """The clocks of all nodes; their files are in a directory.

    Raises LabError when the library cannot be built.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._library = directory / "wall_clock.so"
        command = (
            _compiler() or "cc", "-O2", "-shared", "-fPIC",
            "-o", str(self._library), str(_SOURCE), "-ldl",
        )  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"the clocks' library was not built: {error}") from error
        if done.returncode:
            raise LabError(f"the clocks' library was not built: {done.stderr.strip()}")

    def environment(self, node_id: str) -> Mapping[str, str]:
        """Environment variables that give a node's process a clock of its own."""
        file = self._file(node_id)
        if not file.exists():
            file.write_bytes(_SHIFT.pack(0))
        return {"LD_PRELOAD": str(self._library), "LAB_WALL_CLOCK": str(file)}

    def step(self, node_id: str, seconds: float) -> None:
        """Step a node's wall clock; the offset outlasts restarts of the node."""
        with self._file(node_id).open("r+b") as file:
            (shift_ns,) = _SHIFT.unpack(file.read(_SHIFT.size))
            file.seek(0)
            file.write(_SHIFT.pack(shift_ns + round(1e9 * seconds)))

    def _file(self, node_id: str) -> Path:
        return self._directory / f"{node_id}.clock"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)
