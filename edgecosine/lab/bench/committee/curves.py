"""The errors of SpecFed's reconstructions over the length of the lists, as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecosine.lab.simulation.curves import Curves


def reconstruction_curves(runs: Sequence[dict[str, Any]]) -> list[Curves]:
    """Mean L1 error by the listed share of the vocabulary, with a line for each reconstruction and
    temperature; whole rows are left out, since they have no error."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.get("kind") == "reconstruction" and run["share"] < 1.0:
            name = f"{run['how']}, temperature {run['temperature']:g}"
            lines.setdefault(name, []).append((100.0 * run["share"], run["bias"]))
    if not lines:
        return []
    label = "mean L1 distance from the exact mixture"
    return [
        Curves(
            "reconstruction error", "listed tokens (% of the vocabulary)", label, lines, is_log=True
        )
    ]
