"""Measures the costs of a round besides forward passes: processor time of the target's event loop,
and for a single session the time in which neither a pass runs nor a draft is awaited.

All nodes are processes of this machine, linked by sockets on loopback. Each repetition runs all
cells; every second one runs them in reversed order.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgecosine import zoo
from edgecosine.lab.bench.overhead import overheads_s
from edgecosine.lab.cluster import TARGET, LabCluster, LabPlan, lab_cluster
from edgecosine.lab.figures import Figure, Keep, Notify, interval
from edgecosine.lab.load_generator import closed_loop, make_jobs
from edgecosine.lab.simulation.processors import loop_s
from edgecosine.models import drafters_of

DRAFTING: Final = "edgecosine-without-adaptivity"
"""A policy with drafts of two drafters and drafts ahead in every round, even if they do not pay."""
PLAIN: Final = "target-alone"
IDLE: Final = "idle"
"""In the place of a policy: no session runs."""
SESSIONS: Final = (1, 8)
_ANSWERS: Final = {1: 3, 8: 16}
_MAX_TOKENS: Final = 96
_IDLE_S: Final = 5.0

Run = Mapping[str, Any]

BARS: Final = {"round_overhead_ms": 1.0, "round_overhead_8_ms": 0.3}
"""The largest acceptable figures, in milliseconds of a round."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The target's model, repetitions, and cores of the nodes."""

    model: str
    repeats: int
    target_cores: str
    drafter_cores: str


async def run_rounds(settings: RoundSettings, notify: Notify, keep: Keep) -> dict[str, Figure]:
    """Measure all cells; returns the figures. Figures and runs are saved after every repetition.

    Raises LabError when the kernel does not provide the processor time of threads.
    """
    is_zoo = settings.model == zoo.TARGET
    plan = LabPlan(
        drafters=zoo.drafter_names() if is_zoo else drafters_of(settings.model),
        target=settings.model,
        ballast=zoo.BALLAST if is_zoo else 1,
        network="relays",
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        on_one_host=True,
    )
    cells = [(policy, sessions) for sessions in SESSIONS for policy in (DRAFTING, PLAIN)]
    runs: list[dict[str, Any]] = []
    async with lab_cluster(plan, notify) as cluster:
        for cell in cells:
            await _run(cluster, *cell)
        for repeat in range(settings.repeats):
            runs.append({"repeat": repeat, **await _rest(cluster)})
            for policy, sessions in cells[:: -1 if repeat % 2 else 1]:
                runs.append({"repeat": repeat, **await _run(cluster, policy, sessions)})
            keep(round_figures(runs), runs)
            notify(f"repetition {repeat + 1} of {settings.repeats}")
    return round_figures(runs)


async def _run(cluster: LabCluster, policy: str, sessions: int) -> dict[str, Any]:
    jobs = make_jobs(
        _ANSWERS[sessions], offset=0, policy=policy, temperature=0.0, max_tokens=_MAX_TOKENS,
        trace=sessions == 1,
    )  # fmt: skip
    pid = cluster.local.pid(TARGET)
    started_s = loop_s(pid)
    load = await closed_loop(cluster.client, jobs, sessions)
    spent_s = loop_s(pid) - started_s
    rounds = sum(answer.num_rounds for answer in load.answers)
    overheads = [s for answer in load.answers for s in overheads_s(answer.rounds)]
    return {
        "policy": policy,
        "sessions": sessions,
        "rounds": rounds,
        "drafted_share": sum(answer.num_speculative_rounds for answer in load.answers) / rounds,
        "tokens_per_s": load.tokens_per_s,
        "loop_ms": 1e3 * spent_s / rounds,
        "overhead_ms": 1e3 * statistics.median(overheads) if overheads else None,
    }


async def _rest(cluster: LabCluster) -> dict[str, Any]:
    """A run without requests; its `loop_ms` is that of a second."""
    pid = cluster.local.pid(TARGET)
    started_s = loop_s(pid)
    await asyncio.sleep(_IDLE_S)
    loop_ms = 1e3 * (loop_s(pid) - started_s) / _IDLE_S
    return {"policy": IDLE, "sessions": 0, "loop_ms": loop_ms, "overhead_ms": None}


def round_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Milliseconds for each round of a session; a figure without runs is left out.

    round_overhead_ms    time between two passes of a lone session, without drafts that it waits for
    round_loop_ms        processor time of the event loop with one session
    round_overhead_8_ms  processor time of the event loop with eight sessions
    plain_…              the same of rounds without drafts
    idle_loop_ms         processor time of the event loop in a second without requests
    """
    samples = {
        f"{prefix}round_{name}": [
            run[field]
            for run in runs
            if (run["policy"], run["sessions"]) == (policy, sessions) and run[field] is not None
        ]
        for prefix, policy in (("", DRAFTING), ("plain_", PLAIN))
        for name, field, sessions in (
            ("overhead_ms", "overhead_ms", 1),
            ("loop_ms", "loop_ms", 1),
            ("overhead_8_ms", "loop_ms", 8),
        )
    }
    samples["idle_loop_ms"] = [run["loop_ms"] for run in runs if run["policy"] == IDLE]
    return {name: interval(values, unit="ms") for name, values in samples.items() if values}


def verdicts(figures: Mapping[str, Figure]) -> list[str]:
    """A line for each figure, which says whether the figure meets its bar, if it has one."""
    return [
        f"{name}: {figure}"
        + (
            f", at most {bar}: {'met' if figure.value <= bar else 'MISSED'}"
            if (bar := BARS.get(name))
            else ""
        )
        for name, figure in figures.items()
    ]
