"""Routing regret against the best drafter of each domain, computed from a run's record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine import zoo
from edgecosine.lab.bench.figures import bench_figures
from edgecosine.lab.routing_regret import routing
from tests.lab.bench_runs import made_run

MATRIX = {
    "python": {"python": 4.0, "home": 1.0},
    "home": {"python": 2.0, "home": 5.0},
    "generalist": {"python": 3.0, "home": 4.0},
}


def run_led(*entries: tuple[str, str, int, int]) -> dict[str, Any]:
    """A run in which (node id, domain, rounds led, first rounds led)."""
    drafters: dict[str, dict[str, dict[str, int]]] = {}
    for node_id, domain, led, first in entries:
        drafters.setdefault(node_id, {})[domain] = {"led": led, "first": first}
    return {"drafters": drafters}


def test_regret_is_the_missed_share_of_the_best_drafter_by_domain() -> None:
    found = routing(
        run_led(
            ("python-0", "python", 30, 2), ("generalist-1", "python", 10, 1),
            ("python-0", "home", 10, 0), ("home-2", "home", 10, 1), ("home-3", "home", 20, 0),
        ),
        MATRIX,
    )  # fmt: skip
    assert found is not None
    assert found.to_best == {"python": 0.75, "home": 0.75}
    assert found.regret == pytest.approx((0.25 * 0.25 + 0.25 * 0.8) / 2)
    assert found.first_right == 0.75


@given(st.dictionaries(st.sampled_from([*MATRIX]), st.integers(1, 50), min_size=1))
def test_regret_is_none_for_the_best_and_never_negative(led: dict[str, int]) -> None:
    found = routing(run_led(*((f"{name}-0", "home", n, 0) for name, n in led.items())), MATRIX)
    assert found is not None
    assert -1e-9 <= found.regret < 1.0
    assert (found.regret < 1e-9) == (set(led) == {"home"})


@pytest.mark.parametrize(
    "run",
    [{}, {"drafters": {}}, {"drafters": {"python-0": {"python": {"proposed": 3, "accepted": 2}}}}],
)
def test_older_records_have_no_routing(run: dict[str, Any]) -> None:
    assert routing(run, MATRIX) is None


def test_benchmark_reports_routing_of_single_requests() -> None:
    best, worst = zoo.best_drafters()["python"], "legal"
    drafters = {
        f"{best}-0": {"python": {"led": 9, "first": 1}},
        f"{worst}-1": {"python": {"led": 1, "first": 0}},
    }
    figures = bench_figures([made_run("single", "edgecosine", 100.0, drafters=drafters)])
    assert figures["routed_to_best_python"].value == 0.9
    assert figures["routed_first_right"].value == 1.0
    assert 0.0 < figures["routing_regret"].value < 0.1
    assert "routing_regret" not in bench_figures([made_run("eight", "edgecosine", 100.0)])
