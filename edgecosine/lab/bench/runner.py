"""Runs of the benchmark on clusters in the lab and on transformers, and their records."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import EdgecosineError, ungrouped
from edgecosine.lab.bench.arrivals import fluctuating
from edgecosine.lab.bench.cells import (
    BATCHED,
    COLOCATED,
    LAN,
    OPEN_LOAD_S,
    OURS,
    STOCK,
    Cell,
    Site,
    Step,
)
from edgecosine.lab.bench.overhead import overheads_s
from edgecosine.lab.bench.record import ClosedLoad, Conditions, run_record
from edgecosine.lab.bench.transformers_messages import Kind
from edgecosine.lab.bench.transformers_process import StockProcess
from edgecosine.lab.cluster import LabCluster, NetworkKind
from edgecosine.lab.load_generator import closed_loop, make_jobs, open_loop
from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.measured_requests import Load, LoadRequest
from edgecosine.protocol.api.request import NodeState

WARM_UP = (OURS, "specinfer")
"""Policies that run after a change of network conditions until the target's estimates follow."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Requests and models; core lists as for `edgecosine node`."""

    ballast: int = zoo.BALLAST
    requests: int = 8
    """In each run of a closed loop; at least two for each running request."""
    max_tokens: int = 128
    network: NetworkKind = "auto"
    drafters: tuple[str, ...] = ()
    """Models; the zoo's when none are named."""
    target_cores: str = ""
    drafter_cores: str = ""


class LabEnvironment:
    """Clusters by their only policy, "" for all others; implements `Environment`."""

    def __init__(
        self,
        settings: BenchSettings,
        site: Site,
        clusters: Mapping[str, LabCluster],
        stock: StockProcess | None,
    ) -> None:
        self._settings, self._site = settings, site
        self._clusters, self._stock = clusters, stock
        self._conditions = LAN
        self._tokenizer = Tokenizer.from_file(str(zoo.DIRECTORY / zoo.TARGET / "tokenizer.json"))

    @property
    def notes(self) -> Mapping[str, Any]:
        """The networks' kinds, and transformers' settings."""
        kinds = {name or "all": type(c.network).__name__ for name, c in self._clusters.items()}
        ready = {} if self._stock is None else msgspec.to_builtins(self._stock.ready)
        return {"networks": kinds, **({"transformers": ready} if ready else {})}

    async def warm_up(self, policies: Sequence[str]) -> None:
        """Warm up caches, allocators and estimates by a short answer under each policy."""
        tokens = max(1, self._settings.max_tokens // 4)
        for policy in policies:
            jobs = make_jobs(1, offset=0, policy=policy, temperature=0.0, max_tokens=tokens)
            await closed_loop(self._cluster(policy).client, jobs, 1)

    async def play(self, step: Step) -> dict[str, Any]:
        """Make one run; returns its record.

        Raises the EdgecosineError that ended it.
        """
        await self._change_conditions(step.cell)
        first_job, jobs, arrivals_s = self._jobs(step)
        states: list[NodeState] = []
        with ungrouped(EdgecosineError):
            if step.policy in STOCK:
                load = await self._ask_stock(step, jobs)
            else:
                client = self._cluster(step.policy).client
                asking = (
                    closed_loop(client, jobs, step.cell.load.concurrency)
                    if isinstance(step.cell.load, ClosedLoad)
                    else open_loop(client, jobs, arrivals_s)
                )
                load = await _watched(client, asking, states)
        return self._record(step, load, states, first_job)

    def _cluster(self, policy: str) -> LabCluster:
        return self._clusters.get(policy, self._clusters[""])

    async def _change_conditions(self, cell: Cell) -> None:
        if self._site == "loopback" or cell.conditions == self._conditions:
            return
        self._conditions = cell.conditions
        for policy, cluster in self._clusters.items():
            if policy != COLOCATED:
                await cluster.set_conditions(cell.conditions)
        await self.warm_up(WARM_UP)

    def _jobs(self, step: Step) -> tuple[int, list[LoadRequest], list[float]]:
        """The number of the first request, the requests, and their arrivals in an open load."""
        cell, arrivals_s = step.cell, list[float]()
        if isinstance(cell.load, ClosedLoad):
            count = max(self._settings.requests, 2 * cell.load.concurrency)
        else:
            load, period_s = cell.load, cell.load.period_s or OPEN_LOAD_S
            arrivals_s = fluctuating(
                load.low_per_s, load.high_per_s, period_s, OPEN_LOAD_S, step.repeat
            )
            count = len(arrivals_s)
        first = step.repeat * count
        jobs = make_jobs(
            count, offset=first, policy=step.policy, temperature=cell.temperature,
            max_tokens=self._settings.max_tokens, trace=cell.site == "loopback",
        )  # fmt: skip
        return first, jobs, arrivals_s

    async def _ask_stock(self, step: Step, jobs: Sequence[LoadRequest]) -> Load:
        assert self._stock is not None
        assert isinstance(step.cell.load, ClosedLoad)
        return await self._stock.answer(_kind(step.policy), jobs, step.cell.load.concurrency)

    def _record(
        self, step: Step, load: Load, states: Sequence[NodeState], first_job: int
    ) -> dict[str, Any]:
        cell = step.cell
        conditions = Conditions(
            step.policy, cell.load, cell.temperature, cell.conditions, step.repeat
        )
        overheads = [s for measured in load.answers for s in overheads_s(measured.rounds)]
        tokens = [self._tokenizer.encode(measured.text).ids for measured in load.answers]
        record = {
            "cell": cell.name,
            "site": cell.site,
            **run_record(conditions, load),
            "first_job": first_job,
            "texts": [] if load.refused else [_digest(measured.text) for measured in load.answers],
            "looping_share": _mean([loop_share(each) for each in tokens if each]),
            "target_busy": target_busy(states),
            "rtt_ms": _rtts(states),
            "round_overhead_ms": 1e3 * statistics.median(overheads) if overheads else None,
        }
        if step.policy in STOCK and self._stock is not None:
            record["setting"] = msgspec.to_builtins(self._stock.ready.settings[_kind(step.policy)])
        if overheads and not step.repeat:
            record["requests"] = [load.answers[0].record()]
        return record


async def _watched(
    client: Client, asking: Coroutine[Any, Any, Load], states: list[NodeState]
) -> Load:
    """Await the load, and collect the states that the target publishes meanwhile."""

    async def watch() -> None:
        while True:
            views = await client.nodes()
            states.extend(
                view.state for view in views.values()
                if view.state.get("role") == "target" and view.state not in states[-1:]
            )  # fmt: skip
            await client.changed()

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="watch the target")
        load = await asking
        watching.cancel()
    return load


def target_busy(states: Sequence[NodeState]) -> float | None:
    """The target's share of time in passes, from the first state with a pass to the last.

    The first state and its equals are from before the run; the idle time since then is reported
    with the run's first pass. None when there are too few states.
    """
    at_work = [state for state in states if state["busy_s"] > states[0]["busy_s"]]
    if len(at_work) < 2:
        return None
    busy_s, idle_s = (at_work[-1][key] - at_work[0][key] for key in ("busy_s", "idle_s"))
    return float(busy_s / (busy_s + idle_s)) if busy_s else None


def _rtts(states: Sequence[NodeState]) -> dict[str, float]:
    if not states:
        return {}
    return {name: view["rtt_ms"] for name, view in states[-1]["drafters"].items()}


def _kind(policy: str) -> Kind:
    return "batched" if policy == BATCHED else "assisted"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
