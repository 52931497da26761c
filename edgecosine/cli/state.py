"""The state directory of a node, and the name stored in it for a node without --node-id."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from edgecosine.errors import ConfigError
from edgecosine.places import user_directory
from edgecosine.protocol.api.topics import is_identifier
from edgecosine.security.files import make_private_directory, write_private

_NAME_FILE = "node-id"
_LOCK_FILE = "node-lock"
_MAX_NAME_BYTES = 100
_MAX_DIRECTORIES: Final = 256


def default_state(cluster: str, name: str) -> Path:
    """The default state directory of a node.

    Raises ConfigError when this user has no home directory.
    """
    state = user_directory("STATE")
    if state is None:
        allowed = "--state-dir DIR or --no-journal, since this user has no home directory"
        raise ConfigError("state_dir", "", allowed)
    return state / cluster / name


def stored_name(state_dir: Path, fresh: str) -> str:
    """The node's name stored in the directory; without one, `fresh`, which is then stored.

    The name must survive restarts: a broker keeps requests for a gateway by its name, and clients
    identify nodes by theirs. Raises ConfigError when the directory cannot be used.
    """
    try:
        return _name_in(state_dir, fresh)
    except OSError as error:
        allowed = f"a writable directory, or --no-journal ({error})"
        raise ConfigError("state_dir", str(state_dir), allowed) from error


def unused_directory(base: Path, kind: str, fresh: str) -> tuple[Path | None, str]:
    """A directory in `base` that no other process uses, and the name stored in it.

    Nodes of one `kind` on one machine lock the first free directory, so that each has its own name
    again after a restart. Returns None and `fresh` when no directory can be written.
    """
    try:
        for number in range(1, _MAX_DIRECTORIES + 1):
            directory = base / (kind if number == 1 else f"{kind}-{number}")
            make_private_directory(directory)
            if _lock(directory):
                return directory, _name_in(directory, fresh)
    except OSError:
        return None, fresh
    return None, fresh


def _name_in(directory: Path, fresh: str) -> str:
    file = directory / _NAME_FILE
    make_private_directory(directory)
    if file.exists():
        with file.open("rb") as known:
            name = known.read(_MAX_NAME_BYTES).decode(errors="replace").strip()
        if is_identifier(name):
            return name
        allowed = f"a directory whose file {_NAME_FILE} contains a node's name"
        raise ConfigError("state_dir", str(directory), allowed)
    write_private(file, fresh + "\n")
    return fresh


def _lock(directory: Path) -> bool:
    """Lock the directory until this process ends; False when another process holds the lock."""
    handle = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    return True
