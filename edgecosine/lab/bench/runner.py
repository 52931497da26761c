"""Runs of the benchmark on clusters in the lab and on transformers, and their records."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import EdgecosineError, ungrouped
from edgecosine.lab.bench.cells import (
    ALONE,
    ASSISTED,
    BATCHED,
    PLAIN,
    STOCK,
    Step,
    arrivals_s,
    num_requests,
    num_warm_up,
)
from edgecosine.lab.bench.overhead import overheads_s
from edgecosine.lab.bench.record import ClosedLoad, Conditions, run_record
from edgecosine.lab.bench.transformers_messages import Kind
from edgecosine.lab.bench.transformers_process import StockProcess
from edgecosine.lab.cluster import LabCluster, NetworkKind
from edgecosine.lab.load_generator import closed_loop, make_jobs, open_loop
from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.measured_requests import Load, LoadRequest
from edgecosine.lab.zoo.fresh_prompts import fresh_prompts
from edgecosine.protocol.api.result import NodeState

_KINDS: Mapping[str, Kind] = {BATCHED: "batched", PLAIN: "plain", ASSISTED: "assisted"}
_COMPARED = 2
"""Number of answers in each run that are compared with the target's own."""
_MIDDLE = (0.25, 0.75)
"""The part of a run's time in which the target's busy share is measured."""
TimedState = tuple[float, NodeState]
"""A state and when it was received, in seconds since the run began."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Requests and models; core lists have the form of `edgecosine node --cores`."""

    ballast: int = zoo.BALLAST
    requests: int = 8
    """The least number of requests in each run of a closed loop."""
    max_tokens: int = 128
    network: NetworkKind = "auto"
    drafters: tuple[str, ...] = ()
    """Models of the drafters; empty: those of the zoo."""
    target_cores: str = ""
    drafter_cores: str = ""


class LabEnvironment:
    """An `Environment` of clusters. A policy that needs a special cluster is its key in `clusters`;
    all others run on the cluster ""."""

    def __init__(
        self,
        settings: BenchSettings,
        clusters: Mapping[str, LabCluster],
        stock: StockProcess | None,
    ) -> None:
        self._settings, self._clusters, self._stock = settings, clusters, stock
        self._tokenizer = Tokenizer.from_file(str(zoo.DIRECTORY / zoo.TARGET / "tokenizer.json"))

    @property
    def notes(self) -> Mapping[str, Any]:
        """The kinds of the networks, and the settings of transformers with their trials."""
        kinds = {name or "all": type(c.network).__name__ for name, c in self._clusters.items()}
        ready = {} if self._stock is None else msgspec.to_builtins(self._stock.ready)
        return {"networks": kinds, **({"transformers": ready} if ready else {})}

    async def play(self, step: Step) -> dict[str, Any]:
        """Warm up on other prompts, make one run, and compare some answers with the target's own.

        Returns the run's record.

        Raises the EdgecosineError that ended the run.
        """
        warm, count = num_warm_up(step.cell), self._num_requests(step)
        short = self._jobs(step, 0, warm, max_tokens=max(1, self._settings.max_tokens // 2))
        jobs = self._jobs(step, warm, count, trace=step.cell.site == "loopback")
        at_once = step.cell.load.concurrency if isinstance(step.cell.load, ClosedLoad) else warm
        states: list[TimedState] = []
        with ungrouped(EdgecosineError):
            if step.policy in STOCK:
                assert self._stock is not None
                kind = _KINDS[step.policy]
                await self._stock.answer(kind, short, at_once)
                load = await self._stock.answer(kind, jobs, at_once)
                compared: Mapping[str, int] = {}
            else:
                client = self._client(step.policy)
                await closed_loop(client, short, at_once)
                load = await _watched(client, self._asking(step, client, jobs), states)
                compared = await self._compare(step, jobs, load)
        return {**self._record(step, load, states), "first_prompt": step.first_prompt, **compared}

    def _client(self, policy: str) -> Client:
        return self._clusters.get(policy, self._clusters[""]).client

    def _num_requests(self, step: Step) -> int:
        return num_requests(step.cell, self._settings.requests, step.repeat)

    def _jobs(
        self, step: Step, offset: int, count: int, *, max_tokens: int = 0, trace: bool = False
    ) -> list[LoadRequest]:
        return make_jobs(
            count, offset=step.first_prompt + offset, policy=step.policy,
            temperature=step.cell.temperature, trace=trace, prompts=fresh_prompts(),
            max_tokens=max_tokens or self._settings.max_tokens,
        )  # fmt: skip

    def _asking(
        self, step: Step, client: Client, jobs: Sequence[LoadRequest]
    ) -> Coroutine[Any, Any, Load]:
        if isinstance(step.cell.load, ClosedLoad):
            return closed_loop(client, jobs, step.cell.load.concurrency)
        return open_loop(client, jobs, arrivals_s(step.cell.load, step.repeat))

    async def _compare(
        self, step: Step, jobs: Sequence[LoadRequest], load: Load
    ) -> Mapping[str, int]:
        """Let the target alone answer the first requests again; returns the numbers of compared and
        of equal texts."""
        if step.policy == ALONE or load.refused:
            return {}
        again = [replace(job, policy=ALONE) for job in jobs[:_COMPARED]]
        alone = await closed_loop(self._client(ALONE), again, len(again))
        pairs = zip(alone.answers, load.answers, strict=False)
        return {"compared": len(again), "same": sum(one.text == two.text for one, two in pairs)}

    def _record(self, step: Step, load: Load, states: Sequence[TimedState]) -> dict[str, Any]:
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
            "warm_up": num_warm_up(cell),
            "looping_share": _mean([loop_share(each) for each in tokens if each]),
            "target_busy": target_busy(states, load.elapsed_s),
            "rtt_ms": _rtts(states),
            "round_overhead_ms": 1e3 * statistics.median(overheads) if overheads else None,
        }
        if step.policy in STOCK and self._stock is not None:
            record["setting"] = msgspec.to_builtins(self._stock.ready.settings[_KINDS[step.policy]])
        if overheads and not step.repeat:
            record["requests"] = [load.answers[0].record()]
        return record


async def _watched(
    client: Client, asking: Coroutine[Any, Any, Load], states: list[TimedState]
) -> Load:
    """Await the load, and append the states that the target publishes meanwhile to `states`."""
    started = time.perf_counter()

    async def watch() -> None:
        while True:
            views = await client.nodes()
            for view in views.values():
                is_new = not states or view.state != states[-1][1]
                if is_new and view.state.get("role") == "target":
                    states.append((time.perf_counter() - started, view.state))
            await client.changed()

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="watch the target")
        load = await asking
        watching.cancel()
    return load


def target_busy(states: Sequence[TimedState], elapsed_s: float) -> float | None:
    """The target's share of time in passes over the middle half of a run, which excludes the first
    and last requests; None if fewer than two states were received in it.
    """
    start_s, end_s = (share * elapsed_s for share in _MIDDLE)
    there = [state for at_s, state in states if start_s <= at_s <= end_s]
    if len(there) < 2:
        return None
    busy_s, idle_s = (there[-1][key] - there[0][key] for key in ("busy_s", "idle_s"))
    return float(busy_s / (busy_s + idle_s)) if busy_s + idle_s else None


def _rtts(states: Sequence[TimedState]) -> dict[str, float]:
    if not states:
        return {}
    return {name: view["rtt_ms"] for name, view in states[-1][1]["drafters"].items()}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
