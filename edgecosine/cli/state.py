"""Where a node keeps its state, and the name that it keeps when nobody gave it one."""

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
_MAX_PLACES: Final = 256


def default_state(cluster: str, name: str) -> Path:
    """The state directory of a node, unless told otherwise.

    Raises ConfigError when this user has no place for it.
    """
    state = user_directory("STATE")
    if state is None:
        allowed = "--state-dir DIR or --no-journal, for this user has no home directory"
        raise ConfigError("state_dir", "", allowed)
    return state / cluster / name


def lasting_name(state_dir: Path, drawn: str) -> str:
    """The name that a node had in its former lives; else `drawn`, for all that follow.

    A broker keeps requests for a gateway by its name, and askers know nodes by theirs. Raises
    ConfigError when the directory cannot be used.
    """
    try:
        return _name_in(state_dir, drawn)
    except OSError as error:
        allowed = f"a writable directory, or --no-journal ({error})"
        raise ConfigError("state_dir", str(state_dir), allowed) from error


def lasting_place(base: Path, kind: str, drawn: str) -> tuple[Path | None, str]:
    """A directory in `base` that no other process uses, and the name that lasts with it.

    Nodes of one `kind` on one machine take them in turn, so each finds a name of its own again.
    Where none can be written to, there is no directory, and the name is `drawn`.
    """
    try:
        for number in range(1, _MAX_PLACES + 1):
            place = base / (kind if number == 1 else f"{kind}-{number}")
            make_private_directory(place)
            if _is_ours(place):
                return place, _name_in(place, drawn)
    except OSError:
        return None, drawn
    return None, drawn


def _name_in(directory: Path, drawn: str) -> str:
    file = directory / _NAME_FILE
    make_private_directory(directory)
    if file.exists():
        with file.open("rb") as known:
            name = known.read(_MAX_NAME_BYTES).decode(errors="replace").strip()
        if is_identifier(name):
            return name
        allowed = f"a directory whose {_NAME_FILE} holds a node's name; this one's is not ours"
        raise ConfigError("state_dir", str(directory), allowed)
    write_private(file, drawn + "\n")
    return drawn


def _is_ours(directory: Path) -> bool:
    """Whether the directory was free; it is not for others as long as this process lasts."""
    handle = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    return True
