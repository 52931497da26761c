"""A soak's figures, computed from recorded minutes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from edgecosine.lab.soak.clients import SoakCounts
from edgecosine.lab.soak.record import Minute, Phase, soak_figures

MIB = 1 << 20


def minute(
    phase: Phase, counts: SoakCounts | None = None, *, left: int = 0, mib: int = 0, pid: int = 1
) -> Minute:
    return Minute(phase, 60.0, 2.0, counts or SoakCounts(), left, {"t": mib * MIB}, {"t": pid})


def test_every_ended_request_is_counted_once() -> None:
    counts = SoakCounts(
        3, Counter({"overloaded": 2}), 4, 5, Counter({"internal_error": 1}), [1.0] * 3
    )
    found = soak_figures([minute("capacity", counts), minute("overload", counts)])
    assert {
        name: found[f"soak_{name}"].value
        for name in ("asked", "served", "refused_with_hint", "cancelled", "expired", "other_errors")
    } == {
        "asked": 15, "served": 3, "refused_with_hint": 2, "cancelled": 4, "expired": 5,
        "other_errors": 1,
    }  # fmt: skip


def test_requests_that_run_after_the_rest_are_hung() -> None:
    minutes = [minute("overload", left=70), minute("rest", left=2), minute("after", left=1)]
    assert soak_figures(minutes)["soak_hung"].value == 2


def test_memory_growth_compares_the_medians_of_the_outer_quarters() -> None:
    sizes = [10, 11, 900, 12, 13, 700, 30, 31, 5]
    minutes = [minute("overload", mib=mib) for mib in sizes]
    assert soak_figures(minutes)["soak_memory_growth_mib"].value == (31 + 5) / 2 - 10.5


def test_memory_has_no_figure_before_four_minutes() -> None:
    assert "soak_memory_growth_mib" not in soak_figures([minute("overload")] * 3)


def test_restarted_process_is_counted() -> None:
    minutes = [minute("overload", pid=pid) for pid in (7, 7, 8, 8, 9)]
    assert soak_figures(minutes)["soak_restarts"].value == 2


def test_latency_afterwards_is_compared_with_before() -> None:
    before, after = (SoakCounts(latencies_s=[each] * 9) for each in (0.5, 0.6))
    found = soak_figures([minute("before", before), minute("after", after)])
    ratio = found["soak_after_latency_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))


def test_empty_soak_has_figures_and_a_record() -> None:
    assert soak_figures([])["soak_served"].value == 0
    json.dumps(minute("overload", SoakCounts(refused=Counter({"overloaded": 1}))).record())
