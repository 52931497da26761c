"""Files that hold secrets: never readable by others, and never half written."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgecosine.errors import ConfigError
from edgecosine.places import user_directory

Owner = tuple[int, int]
"""Numbers of a user and a group."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_directory(path: Path, owner: Owner | None = None) -> None:
    """A directory that only its owner may enter; one that is there is left as it is."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        if owner is not None:
            os.chown(path, *owner)


def check_unshared(path: Path, key: str) -> None:
    """Raises ConfigError when anybody could put another file in the place of a secret one."""
    mode = path.stat().st_mode if path.exists() else 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(key, str(path), f"a directory that not everybody may write: chmod o-w "
                          f"{path}, or choose one that is not there yet")  # fmt: skip


def check_not_there(path: Path, names: Iterable[str], key: str) -> None:
    """Raises ConfigError when a directory has files of these names, which others wrote."""
    for name in names:
        if (path / name).exists():
            raise ConfigError(
                key, str(path), f"a directory without a file {name}; the one there is not from "
                "here, and was left as it is: choose another directory",
            )  # fmt: skip


def write_private(path: Path, text: str, owner: Owner | None = None) -> None:
    """Write a file for its owner's eyes only; a crash leaves the old one or the new one."""
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
    """Raises ConfigError when others could have read the secret in a file."""
    if path.stat().st_mode & _OTHERS:
        raise ConfigError(
            "credentials", str(path), f"a file for its owner only: chmod 600 {path}; if anybody "
            "else may have read it, revoke the node and let it join anew",
        )  # fmt: skip


def default_credentials(cluster: str) -> Path | None:
    """Where this machine's credentials for a cluster lie unless told otherwise; None: nowhere."""
    configuration = user_directory("CONFIG")
    return configuration / cluster if configuration else None
