"""The models that come with the package: one target and its drafters, made by scripts/train_zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent
TARGET = "target"
BALLAST = 32
"""How many times wider demonstrations make the target: about 100 M parameters, whose pass takes 20
times a drafter's step or more, as with pairs that people use."""


def names() -> tuple[str, ...]:
    """All models of the zoo."""
    return tuple(sorted(path.parent.name for path in DIRECTORY.glob("*/config.json")))


def drafter_names() -> tuple[str, ...]:
    """All models of the zoo that draft."""
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
    """By domain, the drafter of which the target accepts most at temperature 0."""
    matrix = acceptance()
    domains = dict.fromkeys(domain for row in matrix.values() for domain in row)
    return {domain: max(matrix, key=lambda name: matrix[name][domain]) for domain in domains}
