"""`edgecosine bench faults`: figures of the cost of kills, restarts and protection."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edgecosine.lab.faults.drafter_kills import Kill, measure_kills
from edgecosine.lab.faults.protection import ProtectionRun, ProtectionSettings, measure_protection
from edgecosine.lab.faults.target_restarts import Restart, measure_restarts
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval

Part = Literal["drafter", "target", "protection"]


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """Parts and repetitions; core lists as for `edgecosine node`."""

    parts: tuple[Part, ...]
    kills: int
    restarts: int
    protection: ProtectionSettings


async def run_fault_bench(
    settings: FaultSettings,
    figures: dict[str, Figure],
    runs: list[dict[str, Any]],
    notify: Notify,
    keep: Keep,
) -> None:
    """Measure the chosen parts; each adds its figures and runs, and saves them.

    Raises EngineError, BrokerLost, LabError and RequestError.
    """
    machine = settings.protection
    if "drafter" in settings.parts:
        kills = await measure_kills(
            settings.kills, ballast=machine.ballast, target_cores=machine.target_cores,
            drafter_cores=_numbers(machine.drafter_cores), notify=notify,
        )  # fmt: skip
        figures.update(kill_figures(kills))
        runs += [{"part": "drafter", **asdict(each)} for each in kills]
        keep(figures, runs)
    if "target" in settings.parts:
        restarts = await measure_restarts(
            settings.restarts,
            ballast=machine.ballast,
            target_cores=machine.target_cores,
            notify=notify,
        )
        figures.update(restart_figures(restarts))
        runs += [{"part": "target", **asdict(each)} for each in restarts]
        keep(figures, runs)
    if "protection" in settings.parts:
        measured = await measure_protection(machine, notify)
        figures["journal_tls_cost"] = protection_figure(measured)
        runs += [{"part": "protection", **asdict(each)} for each in measured]
        keep(figures, runs)


def kill_figures(kills: Sequence[Kill]) -> dict[str, Figure]:
    """Waits for the next token as multiples of the plan's deadline, with and without the token's
    forward pass."""
    over = [kill.over_deadline for kill in kills]
    whole = [kill.to_next_token_s / kill.deadline_s for kill in kills]
    return {
        "drafter_kill_to_next_token_over_deadline_p99": interval(over, _percentile(99)),
        "drafter_kill_to_next_token_over_deadline_p50": interval(over, _percentile(50)),
        "drafter_kill_with_pass_over_deadline_p99": interval(whole, _percentile(99)),
        "drafter_kills": counted(len(kills), "kills"),
    }


def restart_figures(restarts: Sequence[Restart]) -> dict[str, Figure]:
    """Seconds beyond a start without requests: the median and the worst."""
    extra_s = [restart.extra_s for restart in restarts]
    return {
        "target_restart_extra_s": interval(extra_s, unit="s"),
        "target_restart_extra_s_worst": interval(extra_s, max, unit="s"),
        "target_load_s": interval([restart.plain_s for restart in restarts], unit="s"),
    }


def protection_figure(runs: Sequence[ProtectionRun]) -> Figure:
    """Median over the repetitions of the lost share of throughput."""
    return interval([run.cost for run in runs], statistics.median)


def _percentile(share: int) -> Callable[[Sequence[float]], float]:
    return lambda samples: float(np.percentile(samples, share))


def _numbers(cores: str) -> tuple[int, ...]:
    return tuple(int(core) for core in cores.split(",") if core)
