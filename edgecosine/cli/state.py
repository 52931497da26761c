"""Where a node keeps its state, and the name that it keeps when nobody gave it one."""

from __future__ import annotations

from pathlib import Path

from edgecosine.errors import ConfigError
from edgecosine.places import user_directory
from edgecosine.protocol.topics import is_identifier
from edgecosine.security.files import make_private_directory, write_private

_NAME_FILE = "node-id"
_MAX_NAME_BYTES = 100


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
    file = state_dir / _NAME_FILE
    try:
        make_private_directory(state_dir)
        if file.exists():
            with file.open("rb") as known:
                name = known.read(_MAX_NAME_BYTES).decode(errors="replace").strip()
            if is_identifier(name):
                return name
            allowed = f"a directory whose {_NAME_FILE} holds a node's name; this one's is not ours"
            raise ConfigError("state_dir", str(state_dir), allowed)
        write_private(file, drawn + "\n")
    except OSError as error:
        allowed = f"a writable directory, or --no-journal ({error})"
        raise ConfigError("state_dir", str(state_dir), allowed) from error
    return drawn
