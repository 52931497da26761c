"""The figures of a committee's runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgecosine.lab.figures import Figure, interval

OURS: Final = "edgecosine"
PLAIN: Final = "target-alone"


def exactness_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Share of answers that equal those of one process, and for short lists the share of tokens
    that the lists alone proved and the bytes of each position."""
    mine = [run for run in runs if run["kind"] == "identical"]
    share = sum(run["is_identical"] for run in mine) / len(mine)
    figures = {"committee_identical_share": Figure(share, share, share, "share", len(mine))}
    for listed in (4, 16):
        some = [run for run in mine if run["listed"] == listed]
        if some:
            drawn = sum(run["drawn"] for run in some)
            proved = 1.0 - sum(run["asked_back"] for run in some) / drawn
            sizes = [run["bytes_per_position"] for run in some]
            figures[f"proved_at_once_k{listed}"] = Figure(proved, proved, proved, "share", drawn)
            figures[f"bytes_per_position_k{listed}"] = interval(sizes, unit="bytes")
    return figures


def speed_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Throughput with drafters over that without, and time of a verification over that of the
    slowest member."""
    mine = [run for run in runs if run["kind"] == "speed"]
    speeds = {
        policy: [run["tokens_per_s"] for run in mine if run["policy"] == policy]
        for policy in (OURS, PLAIN)
    }
    ratios = [run["verify_s"] / run["slowest_member_s"] for run in mine]
    paired = [a / b for a, b in zip(speeds[OURS], speeds[PLAIN], strict=True)]
    return {
        "committee_over_plain": interval(paired),
        "round_over_slowest_member": interval(ratios),
    }
