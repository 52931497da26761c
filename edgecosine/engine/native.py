"""The compiled kernels: built once with the machine's own compiler, called through ctypes.

ctypes releases the interpreter lock during a call, so the event loop runs on while a pass computes.
Without a compiler there are no kernels, and the caller takes the plain torch path and says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgecosine.errors import EngineError

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT_S = 120.0


class KernelsUnavailable(EngineError):
    """The kernels cannot be built or loaded here; the message says why."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library with its signatures declared."""

    library: ctypes.CDLL
    panel: int
    """Output columns that the packed layout keeps side by side."""
    has_pairs: bool
    """Whether the processor multiplies pairs of bfloat16."""
    has_bytes: bool
    """Whether the processor has units that multiply bytes."""


def cache_directory() -> Path:
    """Where built kernels are kept between starts."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "edgecosine" / "kernels"


@functools.cache
def load_kernels() -> Kernels:
    """Build the kernels if they are not there yet, and load them.

    Raises KernelsUnavailable when `EDGECOSINE_KERNELS=off`, when there is no compiler, or when the
    compiler fails.
    """
    if os.environ.get("EDGECOSINE_KERNELS", "on").lower() in {"off", "0", "no"}:
        raise KernelsUnavailable("switched off by EDGECOSINE_KERNELS")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable("no C++ compiler found; install g++ to get them")
    path = cache_directory() / f"kernels-{_fingerprint(compiler)}.so"
    if not path.exists():
        _build(compiler, path)
    return _declare(path)


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=20)
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*")))
    parts = (
        sources,
        version.stdout,
        " ".join(FLAGS).encode(),
        _processor(),
    )
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(sorted({x for x in lines if x.startswith(("flags", "model name"))})).encode()


def _build(compiler: str, path: Path) -> None:
    logger.info("building kernels compiler=%s", compiler)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        command = [compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(built)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=BUILD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise KernelsUnavailable(f"{compiler} took over {BUILD_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise KernelsUnavailable(f"{compiler} failed: {last}")
        built.replace(path)


def _declare(path: Path) -> Kernels:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelsUnavailable(f"cannot load {path}: {error}") from error
    pointer, size, number, real = (
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    )  # fmt: skip
    library.edgecosine_panel.argtypes, library.edgecosine_panel.restype = [], number
    for name in ("has_pairs", "has_bytes"):
        question = getattr(library, f"edgecosine_{name}")
        question.argtypes, question.restype = [], number
    library.edgecosine_pack_blocks.argtypes = [pointer, pointer, pointer, size, size]
    library.edgecosine_pack.argtypes = [pointer, pointer, size, size, size]
    library.edgecosine_linear.argtypes = [
        pointer, number, pointer, size, pointer, pointer, number, size, size, size, number
    ]  # fmt: skip
    library.edgecosine_attention.argtypes = (
        [pointer] * 13 + [size] * 7 + [real, real, size, number, number]
    )
    library.edgecosine_decode.argtypes = [pointer] * 8 + [size] * 2 + [pointer, size, pointer]
    library.edgecosine_rank.argtypes = [pointer, size, size, *[pointer] * 3, size, *[pointer] * 2]
    library.edgecosine_grow.argtypes = [pointer, pointer, size]
    library.edgecosine_grow.restype = size
    for name in ("pack", "pack_blocks", "linear", "attention", "decode", "rank"):
        getattr(library, f"edgecosine_{name}").restype = None
    return Kernels(
        library=library,
        panel=library.edgecosine_panel(),
        has_pairs=bool(library.edgecosine_has_pairs()),
        has_bytes=bool(library.edgecosine_has_bytes()),
    )
