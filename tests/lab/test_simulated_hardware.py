"""Two kinds of hardware: passes whose cost grows with their rows, and passes of constant cost."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import pytest

from edgecosine.errors import LabError
from edgecosine.lab.simulation import sweep
from edgecosine.lab.simulation.cluster import Scenario
from edgecosine.lab.simulation.comparison import ComparisonCell, run_policy
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.sweep import FLAT_ROWS, Hardware, SweepCell, on_hardware, run_cell
from tests.lab.test_simulation import COSTS, TEXTS

KINDS: tuple[Hardware, ...] = ("here", "flat")


def test_only_flat_hardware_has_passes_of_constant_time() -> None:
    here, flat = on_hardware("here", COSTS), on_hardware("flat", COSTS)
    assert here.target_pass(1) == flat.target_pass(1)
    assert here.target_pass(64) > 2 * here.target_pass(1)
    assert flat.target_pass(64) == flat.target_pass(FLAT_ROWS) == flat.target_pass(1)
    assert flat.target_pass(4 * FLAT_ROWS) > 2 * flat.target_pass(1)
    assert here.target_pass(8, 8) - here.target_pass(8, 1) > 0
    assert flat.target_pass(8, 8) == flat.target_pass(8, 1)


def test_only_a_separate_device_computes_while_the_event_loop_runs() -> None:
    """Costs are flat on both, and a round costs the event loop as much as a pass takes."""
    costs = replace(COSTS.with_flat_passes(FLAT_ROWS), round_s=0.010)
    assert on_hardware("flat", costs) == costs
    here, flat = (
        run_policy(ComparisonCell(kind, 2, 0.0), "specedge", 0, costs, TEXTS)["tokens_per_s"]
        for kind in KINDS
    )
    assert flat > here


@pytest.mark.parametrize("kind", KINDS)
def test_sweep_uses_a_separate_device_on_flat_hardware(
    kind: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(scenario: Scenario, loads: object, costs: Costs, _: object) -> NoReturn:
        assert scenario.has_device == (kind == "flat")
        assert (costs == COSTS) == (kind == "here")
        raise LabError("seen")

    monkeypatch.setattr(sweep, "simulate", look)
    with pytest.raises(LabError, match="seen"):
        run_cell(SweepCell(kind, 1, 1), COSTS, TEXTS, 0)
