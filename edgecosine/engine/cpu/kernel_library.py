"""Builds the kernels with the compiler of this machine, and loads them through ctypes.

ctypes releases the interpreter lock during a call, so the event loop runs meanwhile. Without a
compiler the engine uses plain torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgecosine.engine.cpu.native_structs import shared_values
from edgecosine.errors import EngineError
from edgecosine.locks import alone
from edgecosine.places import user_directory

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT_S = 900.0
"""Far above the half minute of one core: a busy or small machine takes minutes."""
PORTABLE = "portable"
"""The name of instructions that are none in particular."""


class KernelsUnavailable(EngineError):
    """The kernels cannot be built or loaded here, for the reason in the message."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library with declared signatures."""

    library: ctypes.CDLL
    panel: int
    """Output columns of a panel of the packed layout."""
    has_pairs: bool
    """Whether the processor has instructions for pairs of bfloat16."""
    instructions: str
    """The instructions that multiply bytes, by name."""

    @property
    def has_bytes(self) -> bool:
        """Whether the processor has such instructions."""
        return self.instructions != PORTABLE


def cache_directory() -> Path | None:
    """Directory of the built kernels; None where the user has no cache directory."""
    cache = user_directory("CACHE")
    return cache / "kernels" if cache else None


def load_kernels() -> Kernels:
    """Load the kernels; builds them unless the cache has them.

    Without a usable cache they are built for this process alone. Raises KernelsUnavailable when
    `EDGECOSINE_KERNELS=off`, when there is no compiler, or when the compiler fails; a process tries
    once.
    """
    if isinstance(found := kernels_or_reason(), str):
        raise KernelsUnavailable(found)
    return found


def are_kernels_built() -> bool:
    """Whether `load_kernels` would find them in the cache, or could not build them."""
    compiler, kept = _compiler(), cache_directory()
    if compiler is None or kept is None or _are_off():
        return True
    try:
        return _is_whole(kept / _file_name(compiler))
    except (OSError, KernelsUnavailable):
        return True


@functools.cache
def kernels_or_reason() -> Kernels | str:
    """The kernels of this process, or why there are none; `cache_clear` forgets either."""
    try:
        return _find_or_build()
    except KernelsUnavailable as reason:
        return str(reason)


def _are_off() -> bool:
    return os.environ.get("EDGECOSINE_KERNELS", "on").lower() in {"off", "0", "no"}


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def _file_name(compiler: str) -> str:
    return f"kernels-{_fingerprint(compiler)}.so"


def _find_or_build() -> Kernels:
    if _are_off():
        raise KernelsUnavailable("switched off by EDGECOSINE_KERNELS")
    if (compiler := _compiler()) is None:
        raise KernelsUnavailable("no C++ compiler found; install g++ to build them")
    name = _file_name(compiler)
    if kept := cache_directory():
        try:
            return _load(compiler, kept / name)
        except OSError as error:
            logger.warning(
                "kernels cannot be cached and are built at each start: directory=%s reason=%s "
                "advice=set XDG_CACHE_HOME to a writable directory", kept, error.strerror or error,
            )  # fmt: skip
    try:
        # The loaded library outlives its file.
        with tempfile.TemporaryDirectory(prefix="edgecosine-") as own:
            return _load(compiler, Path(own) / name)
    except OSError as error:
        raise KernelsUnavailable(f"no directory to build them in: {error}") from error


def _load(compiler: str, path: Path) -> Kernels:
    """Raises OSError when the directory is unusable, KernelsUnavailable when the compiler fails."""
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The nodes of a machine start at the same time: one builds, the others wait for it.
        with alone(path.parent, _note_wait):
            if not _is_whole(path):
                _build(compiler, path)
    return _declare(path)


def _note_wait() -> None:
    logger.info("waiting for another process that builds the kernels")


def _is_whole(path: Path) -> bool:
    """Whether a library matches its digest; loading a truncated one would crash the process."""
    try:
        return _digest_file(path).read_text(encoding="ascii") == _digest(path)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".digest")


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def _fingerprint(compiler: str) -> str:
    version = _run([compiler, "--version"])
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*")))
    parts = (
        sources,
        version.stdout,
        " ".join(FLAGS).encode(),
        _processor(),
    )
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a compiler.

    Raises KernelsUnavailable when it does not start or exceeds `BUILD_TIMEOUT_S`.
    """
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(command, stdout=pipe, stderr=pipe, process_group=0)
    except OSError as error:
        raise KernelsUnavailable(f"{command[0]} cannot be run: {error.strerror}") from error
    with child:
        try:
            output, errors = child.communicate(timeout=BUILD_TIMEOUT_S)
        except BaseException as error:
            # A compiler runs its parts as children of its own.
            os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                late = f"{command[0]} took over {BUILD_TIMEOUT_S:.0f} s"
                raise KernelsUnavailable(late) from None
            raise
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(sorted({x for x in lines if x.startswith(("flags", "model name"))})).encode()


def _build(compiler: str, path: Path) -> None:
    logger.info("building kernels: compiler=%s", compiler)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        done = _run([compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(built)])
        if done.returncode != 0:
            stderr = done.stderr.decode(errors="replace").strip().splitlines()
            raise KernelsUnavailable(f"{compiler} failed: {stderr[-1] if stderr else 'no message'}")
        digest = _digest_file(built)
        digest.write_text(_digest(built), encoding="ascii")
        digest.replace(_digest_file(path))
        built.replace(path)


def _declare(path: Path) -> Kernels:
    library = ctypes.CDLL(str(path))
    pointer, size, number, real = (
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    )  # fmt: skip
    library.edgecosine_panel.argtypes, library.edgecosine_panel.restype = [], number
    library.edgecosine_has_pairs.argtypes, library.edgecosine_has_pairs.restype = [], number
    for name in ("instructions", "fault_of_tiles"):
        function = getattr(library, f"edgecosine_{name}")
        function.argtypes, function.restype = [], ctypes.c_char_p
    library.edgecosine_pack_blocks.argtypes = [pointer, pointer, pointer, pointer, size, size]
    library.edgecosine_prefer_huge_pages.argtypes = [pointer, size]
    library.edgecosine_pack.argtypes = [pointer, pointer, size, size, size]
    library.edgecosine_linear.argtypes = [
        pointer, number, pointer, size, pointer, pointer, number, size, size, size, number
    ]  # fmt: skip
    library.edgecosine_attention.argtypes = (
        [pointer] * 13 + [size] * 8 + [real, real, size, number, number, number]
    )
    for name in ("decode", "decode_greedily"):
        decode = getattr(library, f"edgecosine_{name}")
        decode.argtypes = [pointer] * 8 + [size] * 2 + [pointer, size, pointer]
        decode.restype = number
    library.edgecosine_rank.argtypes = [pointer, size, size, *[pointer] * 3, size, *[pointer] * 2]
    library.edgecosine_draft_step.argtypes = [pointer, pointer, size]
    library.edgecosine_draft_step.restype = size
    library.edgecosine_attention.restype = number
    for name in ("pack", "pack_blocks", "prefer_huge_pages", "linear", "rank"):
        getattr(library, f"edgecosine_{name}").restype = None
    library.edgecosine_shared_values.argtypes = [pointer, size]
    library.edgecosine_shared_values.restype = size
    _check_shared_values(library)
    if fault := library.edgecosine_fault_of_tiles():
        logger.warning("AMX-INT8 is not used: reason=%s", fault.decode())
    return Kernels(
        library=library,
        panel=library.edgecosine_panel(),
        has_pairs=bool(library.edgecosine_has_pairs()),
        instructions=library.edgecosine_instructions().decode(),
    )


def _check_shared_values(library: ctypes.CDLL) -> None:
    """Raises KernelsUnavailable where the kernels were compiled with other sizes or constants."""
    expected = shared_values()
    found = (ctypes.c_int64 * len(expected))()
    count = library.edgecosine_shared_values(found, len(found))
    names = [
        name for (name, value), other in zip(expected.items(), found, strict=True) if value != other
    ]
    if names or count != len(expected):
        raise KernelsUnavailable(
            f"Python and kernels differ in {', '.join(names) or 'the number of shared values'}"
        )
