"""What speculation gains at one request and at many, greedy and sampled, on one machine.

Closed loop: so many requests are always at work. The policies take turns within each repetition, so
that a machine whose speed drifts drifts for all of them.
"""

from __future__ import annotations

import itertools
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgecosine import zoo
from edgecosine.lab.figures import Figure, interval
from edgecosine.lab.load import closed_loop, make_jobs
from edgecosine.lab.network import free_port
from edgecosine.node.client import Client
from edgecosine.node.local_cluster import LocalCluster, local_plan

POLICIES = ("target-alone", "edgecosine")


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How much to ask; `max_tokens` per answer, prompts have 48 tokens."""

    ballast: int
    repeats: int
    requests: int
    max_tokens: int
    target_cores: str
    drafter_cores: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition."""

    concurrency: int
    temperature: float


CELLS = (Cell(1, 0.0), Cell(1, 0.8), Cell(8, 0.0), Cell(8, 0.8))


@dataclass(frozen=True, slots=True)
class Run:
    """One closed loop under one policy."""

    cell: Cell
    policy: str
    tokens_per_s: float
    latency_s: float
    """Mean of the requests' latencies."""
    acceptance_length: float
    texts: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As plain data, without the texts."""
        fields = asdict(self)
        del fields["texts"]
        return fields


async def run_speculation_bench(
    settings: BenchSettings, say: Callable[[str], None]
) -> tuple[dict[str, Figure], list[Run]]:
    """Run all cells; figures, and every run."""
    plan = local_plan(
        zoo.TARGET,
        zoo.drafter_names(),
        cluster=f"bench-{secrets.token_hex(3)}",
        ballast=settings.ballast,
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        broker=None,
        broker_port=free_port(),
    )
    runs: list[Run] = []
    async with (
        LocalCluster(plan, say) as cluster,
        Client(cluster.broker_url, plan.cluster) as client,
    ):
        await _loop(client, CELLS[0], POLICIES[1], settings, 0)
        for repeat, cell in itertools.product(range(settings.repeats), CELLS):
            order = POLICIES if repeat % 2 == 0 else POLICIES[::-1]
            for policy in order:
                runs.append(await _loop(client, cell, policy, settings, repeat))
                say(_line(runs[-1]))
    return _figures(runs), runs


async def _loop(
    client: Client, cell: Cell, policy: str, settings: BenchSettings, repeat: int
) -> Run:
    count = max(settings.requests, 2 * cell.concurrency)
    load = await closed_loop(
        client,
        make_jobs(
            count,
            offset=repeat * count,
            policy=policy,
            temperature=cell.temperature,
            max_tokens=settings.max_tokens,
        ),
        cell.concurrency,
    )
    if load.refused:
        raise load.refused[0]
    return Run(
        cell=cell,
        policy=policy,
        tokens_per_s=load.tokens_per_s,
        latency_s=statistics.mean(a.elapsed_s for a in load.asked),
        acceptance_length=load.acceptance_length,
        texts=tuple(a.text for a in load.asked),
    )


def _figures(runs: Sequence[Run]) -> dict[str, Figure]:
    ratios = {cell: _ratios(runs, cell, lambda run: run.tokens_per_s) for cell in CELLS}
    single, single_sampled, eight, _ = (ratios[cell] for cell in CELLS)
    pairs = [_pairs(runs, cell) for cell in CELLS]
    same = [float(a == b) for cell in pairs for alone, ours in cell
            for a, b in zip(alone.texts, ours.texts, strict=True)]  # fmt: skip
    return {
        "single_over_target_alone": interval(single),
        "eight_over_target_alone": interval(eight),
        "eight_latency_over_target_alone": interval(
            _ratios(runs, CELLS[2], lambda run: run.latency_s)
        ),
        "sampled_over_greedy_speedup": interval(
            [sampled / greedy for sampled, greedy in zip(single_sampled, single, strict=True)]
        ),
        "identical_share": interval(same, statistics.mean),
        "acceptance_length_mean": interval(
            [ours.acceptance_length for _, ours in pairs[0]], statistics.mean, "tokens"
        ),
    }


def _pairs(runs: Sequence[Run], cell: Cell) -> list[tuple[Run, Run]]:
    alone, ours = (
        [run for run in runs if run.cell == cell and run.policy == policy] for policy in POLICIES
    )
    return list(zip(alone, ours, strict=True))


def _ratios(runs: Sequence[Run], cell: Cell, of: Callable[[Run], float]) -> list[float]:
    return [of(ours) / of(alone) for alone, ours in _pairs(runs, cell)]


def _line(run: Run) -> str:
    return (
        f"{run.cell.concurrency} at a time, temperature {run.cell.temperature}: {run.policy} "
        f"{run.tokens_per_s:.0f} tokens/s, {run.latency_s:.2f} s each, "
        f"acceptance length {run.acceptance_length:.2f}"
    )
