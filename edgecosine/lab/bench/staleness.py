"""Checks by the repository's history whether a record is older than the code that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecosine.lab.figures import git_output

DESCRIBED = ("balance", "engine", "fusion", "node", "protocol")
"""Packages whose changes make a record stale."""


def staleness(record: Mapping[str, Any], repository: Path | None = None) -> str:
    """One line that says by how many commits to which packages the record is older, that it is
    current, or why its age is unknown."""
    environment = record.get("environment", {})
    commit = environment.get("commit")
    if not commit:
        return "age unknown: the record names no commit"
    package = Path(__file__).parents[2]
    root = repository or package.parent
    changes: dict[str, int] = {}
    for name in DESCRIBED:
        path = f"{package.name}/{name}"
        count = git_output(root, "rev-list", "--count", f"{commit}..HEAD", "--", path)
        if count is None:
            return f"age unknown: there is no git history with commit {commit} here"
        changes[name] = int(count)
    changed = [f"{name} {number}" for name, number in changes.items() if number]
    dirty = " and files that differ from it" if environment.get("dirty") else ""
    made = f"made with commit {commit}{dirty}"
    if not changed:
        return f"current: {made}"
    return f"STALE: {made}; commits since then: {', '.join(changed)}"
