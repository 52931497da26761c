"""Made-up runs of the benchmark, with defaults for the other fields."""

from __future__ import annotations

from typing import Any


def made_run(
    cell: str, policy: str, tokens_per_s: float, repeat: int = 0, **more: Any
) -> dict[str, Any]:
    """A run as in a record."""
    return {
        "cell": cell,
        "site": "network",
        "policy": policy,
        "load": {"concurrency": 1, "kind": "closed"},
        "repeat": repeat,
        "temperature": 0.0,
        "tokens_per_s": tokens_per_s,
        "latency_s": {"mean": 100 / tokens_per_s},
        "acceptance_length": 1.5,
        "ahead_hit_rate": None,
        "refused": [],
        "first_prompt": 0,
        "looping_share": 0.25,
        "target_busy": None,
        "round_overhead_ms": None,
        "took_s": 1.0,
        **more,
    }
