"""Measured times of passes, kept in the user's cache directory for the next start.

A file holds one table: of one model, storage of weights, processor and number of threads. It is
advice only: a damaged one is deleted, and one that does not fit the machine is measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.places import user_directory

logger = logging.getLogger(__name__)

MAX_TABLES: Final = 64
"""Files in the directory; beyond them the oldest are deleted."""
MAX_BYTES: Final = 1 << 16
_CPUINFO: Final = Path("/proc/cpuinfo")

_Rows = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=3600.0)]
_DECODER: Final = msgspec.json.Decoder(dict[_Rows, _Seconds], strict=True)


class PassTable:
    """The table of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"<PassTable {self._path.name}>"

    def read(self) -> dict[int, float]:
        """Rows -> seconds; empty if there is no table. A damaged file is deleted."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) <= MAX_BYTES:
                return _DECODER.decode(data)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("pass table damaged: file=%s cause=%s", self._path, error)
        self.delete()
        return {}

    def write(self, times: Mapping[int, float]) -> None:
        """Keep a table; a directory that cannot be written costs the next start a measurement."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            written = self._path.with_suffix(".new")
            written.write_bytes(msgspec.json.encode(dict(times)))
            written.replace(self._path)
            tables = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in tables[:-MAX_TABLES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.info("pass table not kept: file=%s cause=%s", self._path, error)

    def delete(self) -> None:
        """Remove the file, if there is one."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def pass_table(options: LoadOptions, loaded: Loaded, cores: str) -> PassTable | None:
    """The table of a loaded target on these cores; None without a cache directory."""
    directory = user_directory("CACHE")
    if directory is None:
        return None
    facts = (
        loaded.digest, loaded.form, loaded.quantization, loaded.dtype, loaded.kv_dtype,
        loaded.exactness,
        options.device, options.threads, options.ballast, options.tensor_parallel, cores,
        _processor(),
    )  # fmt: skip
    name = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    return PassTable(directory / "passes" / f"{name}.json")


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    # Virtual machines of one model name may differ in their instructions.
    first = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return "".join(first.get(field, "") for field in ("model name", "Features", "flags"))
