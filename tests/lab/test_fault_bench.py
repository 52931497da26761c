"""Kills that count, and the figures of kills, restarts and protection."""

from __future__ import annotations

from typing import Any

import pytest

from edgecosine.lab.faults.drafter_kills import Kill, effective_kills
from edgecosine.lab.faults.protection import ProtectionRun
from edgecosine.lab.faults.run_faults import kill_figures, protection_figure, restart_figures
from edgecosine.lab.faults.target_restarts import Restart
from edgecosine.lab.measured_requests import MeasuredAnswer

BEGAN_S = 1000.0


def traced(verified_s: float, drafter: str = "d1", deadline_s: float = 0.05) -> dict[str, Any]:
    """A round of 100 ms that ends with a pass of 30 ms; drafts are requested at its start."""
    asked_s = verified_s - 0.1
    return {
        "verified_s": verified_s, "pass_s": 0.03, "deadline_s": deadline_s,
        "drafts": [{"drafter": drafter, "asked_s": asked_s}],
    }  # fmt: skip


def answer(*rounds: dict[str, Any]) -> MeasuredAnswer:
    return MeasuredAnswer("", "", "", 8, 1.0, None, 0.0, 0.0, (0,), {}, "", rounds, BEGAN_S)


def test_next_token_comes_with_the_round_of_the_kill() -> None:
    measured = answer(traced(0.1), traced(0.2), traced(0.3))
    [kill] = effective_kills(measured, [("d1", BEGAN_S + 0.11)])
    assert kill.to_next_token_s == pytest.approx(0.09)
    assert kill.pass_s == pytest.approx(0.03)
    assert kill.over_deadline == pytest.approx(0.06 / 0.05)


def test_kill_during_the_pass_waits_for_the_pass_only() -> None:
    measured = answer(traced(0.1), traced(0.2))
    [kill] = effective_kills(measured, [("d1", BEGAN_S + 0.19)])
    assert kill.over_deadline == 0.0


def test_kill_of_a_drafter_of_the_round_before_counts() -> None:
    measured = answer(traced(0.1), traced(0.2, "d1"), traced(0.3, "d2"))
    assert len(effective_kills(measured, [("d1", BEGAN_S + 0.25), ("d2", BEGAN_S + 0.25)])) == 2


@pytest.mark.parametrize(
    ("victim", "moment"),
    [("d9", 0.15), ("d1", 0.05), ("d1", 0.35), ("d1", -1.0), ("d1", 0.25)],
    ids=["idle", "in the prefill", "after the end", "before the session", "in a plain round"],
)
def test_kill_without_lost_drafts_does_not_count(victim: str, moment: float) -> None:
    measured = answer(traced(0.1), traced(0.2), traced(0.3, deadline_s=0.0))
    assert effective_kills(measured, [(victim, BEGAN_S + moment)]) == []


def test_figures_are_over_deadlines_seconds_and_shares() -> None:
    kills = [Kill(0.03 + 0.0001 * number, 0.03, 0.01) for number in range(101)]
    found = kill_figures(kills)
    assert found["drafter_kill_to_next_token_over_deadline_p99"].value == pytest.approx(0.99)
    assert found["drafter_kill_with_pass_over_deadline_p99"].value == pytest.approx(3.99)
    found = restart_figures([Restart(5.0, 6.0), Restart(4.0, 5.5), Restart(5.0, 5.5)])
    assert found["target_restart_extra_s"].value == pytest.approx(1.0)
    assert found["target_restart_extra_s_worst"].value == pytest.approx(1.5)
    cost = protection_figure(
        [ProtectionRun(100.0, 98.0), ProtectionRun(50.0, 49.5), ProtectionRun(200.0, 190.0)]
    )
    assert cost.value == pytest.approx(0.02)
