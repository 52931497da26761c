"""Two kinds of hardware: passes that cost more the more rows they have, and passes that do not."""

from __future__ import annotations

from edgecosine.lab.simulation.comparison import Contest, run_policy
from edgecosine.lab.simulation.sweep import FLAT_ROWS, on_hardware
from tests.lab.test_simulation import COSTS, TEXTS


def test_passes_are_flat_on_one_kind_of_hardware_alone() -> None:
    here, flat = on_hardware("here", COSTS), on_hardware("flat", COSTS)
    assert here.target_pass(1) == flat.target_pass(1)
    assert here.target_pass(64) > 2 * here.target_pass(1)
    assert flat.target_pass(64) == flat.target_pass(FLAT_ROWS) == flat.target_pass(1)
    assert flat.target_pass(4 * FLAT_ROWS) > 2 * flat.target_pass(1)
    assert here.target_pass(8, 8) - here.target_pass(8, 1) > 0
    assert flat.target_pass(8, 8) == flat.target_pass(8, 1)


def test_hardware_decides_what_a_contest_measures() -> None:
    speeds = {
        hardware: run_policy(Contest(hardware, 4, 0.0), "specedge", 0, COSTS, TEXTS)["tokens_per_s"]
        for hardware in ("here", "flat")
    }
    assert speeds["flat"] > 1.2 * speeds["here"]
