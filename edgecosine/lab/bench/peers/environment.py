"""The Python environment of llama.cpp: created once, below the user's cache directory.

llama-cpp-python is built from source, so that llama.cpp, like the engine's kernels, uses all
instructions of this processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgecosine.errors import LabError
from edgecosine.lab.figures import Notify

VERSION: Final = "0.3.36"
BUILD_TIMEOUT_S: Final = 3600.0
_PACKAGE: Final = "llama-cpp-python"
_LAST_LINES: Final = 3


def llamacpp_directory() -> Path:
    """Directory of the environment, which may not exist yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgecosine" / "peers" / f"llamacpp-{VERSION}"


def llamacpp_python(notify: Notify, directory: Path | None = None) -> Path:
    """The interpreter of the environment, which is created when missing.

    Blocks during the build, for minutes.

    Raises LabError with the last lines of a failed build.
    """
    directory = directory or llamacpp_directory()
    python = directory / "bin" / "python"
    if _is_whole(python):
        return python
    log = directory.with_name(f"{directory.name}.log")
    notify(
        f"building {_PACKAGE} {VERSION} for this processor in {directory}; this takes many minutes "
        f"(progress: {log})"
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    _run((sys.executable, "-m", "venv", "--clear", str(directory)), log)
    _run(
        ("nice", str(python), "-m", "pip", "install", "-v", "--no-binary", _PACKAGE,
         f"{_PACKAGE}=={VERSION}"),
        log,
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    )  # fmt: skip
    if not _is_whole(python):
        raise LabError(f"{_PACKAGE} {VERSION} was built but cannot be imported: see {log}")
    return python


def _is_whole(python: Path) -> bool:
    """Whether this version can be imported there, so that an interrupted build is repeated."""
    check = (
        "import importlib.metadata as m, llama_cpp, sys; "
        f"sys.exit(m.version({_PACKAGE!r}) != {VERSION!r})"
    )
    if not python.exists():
        return False
    try:
        done = subprocess.run([python, "-c", check], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _run(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
    with log.open("wb") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False,
                timeout=BUILD_TIMEOUT_S, env={**os.environ, **(env or {})},
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise LabError(f"{_PACKAGE} was not built: {error}") from error
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise LabError(f"{_PACKAGE} was not built: {' | '.join(lines)}; full log: {log}")
