"""The models of the package: one target and its drafters, trained by scripts/train_zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent
TARGET = "target"
BALLAST = 32
"""Ballast of the target in demonstrations: about 100 M parameters, whose step takes at least 20
times as long as a drafter's, as with common pairs of models."""


def names() -> tuple[str, ...]:
    """Names of all models of the zoo."""
    return tuple(sorted(path.parent.name for path in DIRECTORY.glob("*/config.json")))


def drafter_names() -> tuple[str, ...]:
    """Names of the drafters of the zoo."""
    return tuple(name for name in names() if name != TARGET)


def prompts() -> dict[str, list[str]]:
    """Held-out prompts by domain, 48 tokens each."""
    entries: dict[str, Any] = json.loads((DIRECTORY / "prompts.json").read_text(encoding="utf-8"))
    return {domain: [entry["text"] for entry in texts] for domain, texts in entries.items()}


def acceptance() -> dict[str, dict[str, float]]:
    """Mean accepted tokens of each drafter's drafts at temperature 0, drafter by domain."""
    card: dict[str, Any] = json.loads((DIRECTORY / "zoo.json").read_text(encoding="utf-8"))
    matrix: dict[str, dict[str, float]] = card["acceptance"]["0.0"]["matrix"]
    return matrix


def best_drafters() -> dict[str, str]:
    """By domain, the drafter with the most accepted tokens at temperature 0."""
    matrix = acceptance()
    domains = dict.fromkeys(domain for row in matrix.values() for domain in row)
    return {domain: max(matrix, key=lambda name: matrix[name][domain]) for domain in domains}
