"""The figures of `bench rounds`, from runs as it records them."""

from __future__ import annotations

from typing import Any

from edgecosine.lab.bench.run_rounds import DRAFTING, IDLE, PLAIN, round_figures, verdicts


def run(policy: str, sessions: int, loop_ms: float, overhead_ms: float | None) -> dict[str, Any]:
    return {
        "policy": policy, "sessions": sessions, "loop_ms": loop_ms, "overhead_ms": overhead_ms,
    }  # fmt: skip


def test_figures_separate_drafted_from_plain_rounds_and_one_session_from_eight() -> None:
    runs = [
        run(DRAFTING, 1, 0.7, 0.9),
        run(PLAIN, 1, 0.2, 0.4),
        run(DRAFTING, 8, 0.5, None),
        run(PLAIN, 8, 0.1, None),
        run(IDLE, 0, 7.5, None),
    ]
    assert {name: figure.value for name, figure in round_figures(runs).items()} == {
        "round_overhead_ms": 0.9,
        "round_loop_ms": 0.7,
        "round_overhead_8_ms": 0.5,
        "plain_round_overhead_ms": 0.4,
        "plain_round_loop_ms": 0.2,
        "plain_round_overhead_8_ms": 0.1,
        "idle_loop_ms": 7.5,
    }
    met, _, missed, *_ = verdicts(round_figures(runs))
    assert met.endswith("at most 1.0: met")
    assert missed.endswith("at most 0.3: MISSED")


def test_figures_without_runs_are_left_out() -> None:
    assert list(round_figures([run(DRAFTING, 8, 0.2, None)])) == ["round_overhead_8_ms"]
