"""Costs of operations on one machine, in seconds; `measure_costs` and `validation` measure them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from edgecosine.balance.cost_model import PassCost

FLAT_PASS_ROWS = 256
FLAT_STEP_ROWS = 64


@dataclass(frozen=True)
class Costs:
    """Seconds of each operation. Tables by rows are interpolated, and extrapolated by their last
    slope."""

    pass_s: Mapping[int, float]
    """A target's forward pass, by its rows."""
    step_s: Mapping[int, float]
    """A drafter's step, by its rows."""
    session_s: float = 0.0
    """Addition to a pass for each session except the first, besides its rows."""
    work_s: float = 0.0
    """Addition to a call of a draft engine for each request, besides its rows."""
    plan_s: Mapping[int, float] = field(default_factory=dict)
    """A plan, by the number of compared drafters; the plan for one is part of `message_s`."""
    round_s: float = 0.0
    """Time of the target's event loop for one round of one session without drafters."""
    message_s: float = 0.0
    """Time of the target's event loop for one message of a link, sent or received."""
    request_s: float = 0.0
    """Time of the drafter's event loop for one draft request with its answer."""
    hop_s: float = 0.0
    """Delay from a loop to its engine's thread and back, for one call; uses no processor time."""
    delivery_s: float = 0.0
    """Time of broker, client and traffic process for the text of a round, if they share the
    drafters' processor."""
    carriage_s: float = 0.0
    """Time of the traffic process for one message of a link, if it shares the drafters'
    processor."""
    between_s: float = 0.0
    """Time from the end of a request to the start of the same client's next one."""
    one_way_s: float = 0.0
    """Delay of a message between target and drafter, in one direction."""
    contention: float = 0.0
    """Seconds by which a pass gets longer for each second in which the drafters' shared processor
    computes at the same time, since both use the memory of one machine."""
    least_step_s: float = 0.0
    """Shortest duration of a drafter's step; the rest of a shorter step uses no processor."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """Other measurements, for the record."""

    @cached_property
    def _pass(self) -> PassCost:
        return _table(self.pass_s)

    @cached_property
    def _plan(self) -> PassCost:
        return _table(self.plan_s)

    @cached_property
    def _step(self) -> PassCost:
        return _table(self.step_s)

    def target_pass(self, rows: int, sessions: int = 1) -> float:
        """Seconds of a target's forward pass."""
        return self._pass.expected_s(rows) + max(0, sessions - 1) * self.session_s

    def comparison(self, drafters: int) -> float:
        """Seconds that a plan with this many compared drafters adds to the target's event loop,
        beyond a plan with one."""
        return self._plan.expected_s(max(1, drafters)) - self._plan.expected_s(1)

    def drafter_step(self, rows: int) -> float:
        """Seconds of one step of a drafter."""
        return self._step.expected_s(rows)

    def with_flat_passes(self, rows: int) -> Costs:
        """These costs, but a pass of up to `rows` rows costs as much as one row, and a larger one
        proportionally more."""
        one_s = self.target_pass(1)
        return replace(self, pass_s={1: one_s, rows: one_s, 2 * rows: 2 * one_s}, session_s=0.0)

    def on_accelerators(self, pass_s: float, step_s: float) -> Costs:
        """These costs with passes and steps that are limited by memory bandwidth.

        A pass takes `pass_s` up to `FLAT_PASS_ROWS` rows, a step `step_s` up to `FLAT_STEP_ROWS`
        rows, and proportionally more beyond.
        """
        flat, steps = FLAT_PASS_ROWS, FLAT_STEP_ROWS
        return replace(
            self,
            pass_s={1: pass_s, flat: pass_s, 2 * flat: 2 * pass_s},
            session_s=0.0,
            step_s={1: step_s, steps: step_s, 2 * steps: 2 * step_s},
        )

    def with_rtt(self, seconds: float) -> Costs:
        """These costs with a round trip of `seconds` between target and drafter."""
        return replace(self, one_way_s=seconds / 2)


def _table(by_rows: Mapping[int, float]) -> PassCost:
    cost = PassCost()
    for rows, seconds in by_rows.items():
        cost.observe(rows, seconds)
    return cost
