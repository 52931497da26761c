"""Whether a record is older than the code that it describes, by the repository's history."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DESCRIBED = ("balance", "engine", "fusion", "node", "protocol")
"""Packages whose changes make a record stale."""


def staleness(record: Mapping[str, Any], repository: Path | None = None) -> str:
    """One line: by how many commits to which packages the record is older, that it is not, or why
    this is unknown."""
    environment = record.get("environment", {})
    commit = environment.get("commit")
    if not commit:
        return "age unknown: the record names no commit"
    package = Path(__file__).parents[2]
    root = repository or package.parent
    changes: dict[str, int] = {}
    for name in DESCRIBED:
        path = f"{package.name}/{name}"
        count = _git(root, "rev-list", "--count", f"{commit}..HEAD", "--", path)
        if count is None:
            return f"age unknown: there is no git history with commit {commit} here"
        changes[name] = int(count)
    changed = [f"{name} {number}" for name, number in changes.items() if number]
    dirty = " and files that differ from it" if environment.get("dirty") else ""
    made = f"made with commit {commit}{dirty}"
    if not changed:
        return f"current: {made}"
    return f"STALE: {made}; commits since then: {', '.join(changed)}"


def _git(root: Path, *words: str) -> str | None:
    """Output of a git command; None where it fails."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
