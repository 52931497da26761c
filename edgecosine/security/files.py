"""Files that hold secrets: never readable by others, and never half written."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from edgecosine.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_directory(path: Path) -> None:
    """A directory that only its owner may enter, made if it is not there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner's eyes only; a crash leaves the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
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


def config_directory() -> Path:
    """Where this user's settings lie."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgecosine"


def default_credentials(cluster: str) -> Path:
    """Where this machine's credentials for a cluster lie unless told otherwise."""
    return config_directory() / cluster
