"""Files with secrets: readable by their owner only, and written atomically."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgecosine.errors import ConfigError
from edgecosine.places import user_directory

Owner = tuple[int, int]
"""User id and group id."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_directory(path: Path, owner: Owner | None = None) -> None:
    """Create a directory that only its owner may enter; an existing one is not changed."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        if owner is not None:
            os.chown(path, *owner)


def check_unshared(path: Path, key: str) -> None:
    """Raises ConfigError when any user could replace files in the directory."""
    mode = path.stat().st_mode if path.exists() else 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(key, str(path), f"a directory that others cannot write: chmod o-w "
                          f"{path}, or choose one that is not there yet")  # fmt: skip


def check_not_there(path: Path, names: Iterable[str], key: str) -> None:
    """Raises ConfigError when the directory has files of these names."""
    for name in names:
        if (path / name).exists():
            raise ConfigError(
                key, str(path), f"a directory without a file {name}; the one there is not from "
                "here, and was left as it is: choose another directory",
            )  # fmt: skip


def write_private(path: Path, text: str, owner: Owner | None = None) -> None:
    """Write a file that only its owner may read; a crash leaves the old or the new content."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if owner is not None:
                os.fchown(handle, *owner)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_private(path: Path) -> None:
    """Raises ConfigError when other users can access the file."""
    if path.stat().st_mode & _OTHERS:
        raise ConfigError(
            "credentials", str(path), f"a file for its owner only: chmod 600 {path}; if anybody "
            "else may have read it, revoke the node and let it join again",
        )  # fmt: skip


def default_credentials(cluster: str) -> Path | None:
    """The default directory of credentials for a cluster; None where the user has no home."""
    configuration = user_directory("CONFIG")
    return configuration / cluster if configuration else None
