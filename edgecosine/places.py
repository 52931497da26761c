"""The user's directories: by the XDG variables, else below the home directory, if there is one.

A container's user may have neither a home nor a name; then there is no such directory.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final, Literal

_BELOW_HOME: Final = {"CONFIG": ".config", "CACHE": ".cache", "STATE": ".local/state"}


def user_directory(kind: Literal["CONFIG", "CACHE", "STATE"]) -> Path | None:
    """EdgeCoSine's directory of a kind, which need not exist; None if there is no home."""
    base = os.environ.get(f"XDG_{kind}_HOME", "")
    if os.path.isabs(base):  # noqa: PTH117 -- an empty text is no path
        return Path(base) / "edgecosine"
    home = home_directory()
    return home / _BELOW_HOME[kind] / "edgecosine" if home else None


def home_directory() -> Path | None:
    """The user's home directory; None if there is none."""
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if os.path.isabs(home) else None  # noqa: PTH117


def expanded(path: str) -> Path:
    """A path whose `~` is replaced by the home directory; unchanged if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
