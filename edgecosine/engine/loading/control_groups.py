"""Memory limits of the control groups of this process, such as docker --memory, systemd MemoryMax.

Supports versions 1 and 2. All visible groups above the process count: the kernel enforces each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class _Files:
    """File names of a version, and the name of the reclaimable part of the usage."""

    limits: tuple[str, ...]
    use: str
    reclaimable: str


_BY_VERSION: Final = {
    "cgroup": _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    "cgroup2": _Files(("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


def group_memory(root: Path = Path("/")) -> int | None:
    """Bytes left within the limits of the control groups; None where no group has a limit."""
    free = [
        available
        for files, group in _groups(root)
        if (available := _free(group, files)) is not None
    ]
    return min(free, default=None)


def _groups(root: Path) -> Iterator[tuple[_Files, Path]]:
    """The groups of this process that account memory, and those above them."""
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = [line.split(":", 2)[1:] for line in own if line.count(":") >= 2]
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        where, how = before.split(" "), after.split(" ")
        if len(where) < 5 or len(how) < 3 or (files := _BY_VERSION.get(how[0])) is None:
            continue
        controller = "memory" if how[0] == "cgroup" else ""
        for controllers, path in paths:
            if controller in controllers.split(","):
                top = root / where[4].lstrip("/")
                yield from ((files, group) for group in _upwards(top, where[3], path))


def _upwards(top: Path, mounted: str, path: str) -> Iterator[Path]:
    """The directories of a group and of those above it, in a tree whose part `mounted` is at `top`.

    In a container the path of the group may be one of the host, of which only `top` is visible.
    """
    try:
        inner = PurePosixPath(path).relative_to(mounted)
    except ValueError:
        inner = PurePosixPath()
    group = top / inner if ".." not in inner.parts else top
    while True:
        yield group
        if group == top:
            return
        group = group.parent


def _free(group: Path, files: _Files) -> int | None:
    limits = [limit for name in files.limits if (limit := _number(group / name)) is not None]
    limit, used = min(limits, default=_UNLIMITED), _number(group / files.use)
    if limit >= _UNLIMITED or used is None:
        return None
    return max(0, limit - max(0, used - _reclaimable(group, files.reclaimable)))


def _reclaimable(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        return int(dict(line.split(" ", 1) for line in lines).get(name, 0))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    """The number in a file; None where it is `max`, or the file does not exist."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
