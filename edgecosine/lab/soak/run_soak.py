"""Runs a soak: a long overload, then normal load again.

Capacity is measured first, with as many running requests as the target accepts, and normal latency
at half of the capacity. Then requests of all client profiles arrive at random times, at `load`
times the capacity, while a subscriber has stopped reading. The capacity is raised when a minute
shows a higher one and is never lowered, so that other load on the machine only adds to the
overload. Since such load also changes latencies within an hour, the cluster is compared with a
fresh one at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.figures import Figure, Notify, interval, write_report
from edgecosine.lab.harness import fresh_plan
from edgecosine.lab.load_generator import closed_loop, make_jobs, run_workers
from edgecosine.lab.soak.clients import NORMAL, PROFILES, Clients
from edgecosine.lab.soak.record import MINUTE_S, Minute, Phase, soak_figures
from edgecosine.local import child_processes as processes
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan
from edgecosine.protocol.api.request import DEFAULT_POLICY
from edgecosine.protocol.api.topics import Topics

_NORMAL_SHARE = 0.5
"""Normal load as a share of the capacity."""
_CAPACITY_S = 40.0
_CAPACITY_REQUESTS = 16
"""Running requests while capacity is measured: twice the target's slots."""
_PAIRS = 20
"""Alternating requests to the old cluster and to a fresh one, at the end."""
_PATIENCE_S = 300.0
"""Longest wait of a client for a gateway, and of the run for the last answers."""


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """Durations and load of a soak. `load` is the request rate over the capacity."""

    minutes: float
    load: float
    normal_minutes: float
    """Minutes of normal load, once before and once after the overload."""
    ballast: int
    seed: int
    target_cores: str
    drafter_cores: str
    drafters: tuple[str, ...] = zoo.drafter_names()[:2]


async def run_soak(
    settings: SoakSettings,
    found: dict[str, Figure],
    report: Path | None,
    notify: Notify,
) -> None:
    """Run a soak; updates `found` and writes the report after every minute.

    Raises EngineError, BrokerLost, and LabError where memory use cannot be read.
    """
    if not _resident_bytes(os.getpid()):
        raise LabError("memory use is read from /proc, which is missing here")
    minutes: list[Minute] = []

    def write() -> None:
        if report is not None:
            write_report(report, found, [each.record() for each in minutes], **asdict(settings))

    def record(minute: Minute) -> None:
        minutes.append(minute)
        notify(str(minute))
        found.update(soak_figures(minutes))
        write()

    async with contextlib.AsyncExitStack() as stack:
        plan = _plan(settings)
        cluster = await stack.enter_async_context(LocalCluster(plan, notify))
        connect = partial(Client, patience_s=_PATIENCE_S, retry_patience_s=0)
        clients = [
            await stack.enter_async_context(connect(cluster.broker_url, plan.cluster))
            for _ in PROFILES
        ]
        stalled = await stack.enter_async_context(_stalled_subscriber(cluster, plan.cluster))
        soak = _Soak(cluster, Clients(clients, PROFILES, settings.seed), stalled, record)
        await soak.run(settings)
        plan = _plan(settings)
        other = await stack.enter_async_context(LocalCluster(plan, notify))
        fresh = await stack.enter_async_context(connect(other.broker_url, plan.cluster))
        found["soak_over_fresh_latency_ratio"] = await _over_fresh(clients[0], fresh)
        write()


def _plan(settings: SoakSettings) -> ClusterPlan:
    return fresh_plan(
        "soak", zoo.TARGET, settings.drafters, ballast=settings.ballast,
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
    )  # fmt: skip


async def _over_fresh(old: Client, fresh: Client) -> Figure:
    """Latency of the old cluster over that of a fresh one; the two take turns at going first."""
    ratios = []
    for number in range(_PAIRS + 1):
        [job] = make_jobs(1, offset=number, policy=DEFAULT_POLICY, temperature=0.0)
        order = (old, fresh) if number % 2 else (fresh, old)
        loads = {client: await closed_loop(client, [job], 1) for client in order}
        ratios.append(loads[old].elapsed_s / loads[fresh].elapsed_s)
    return interval(ratios[1:])  # the first request warms the fresh cluster up


class _Soak:
    """The phases of a soak: capacity, normal load, overload, normal load."""

    def __init__(
        self,
        cluster: LocalCluster,
        clients: Clients,
        stalled: Process,
        record: Callable[[Minute], None],
    ) -> None:
        self._cluster, self._clients, self._stalled = cluster, clients, stalled
        self._record = record
        self._rng = random.Random(0)
        self._now = asyncio.get_running_loop().time
        self._begun = 0.0

    async def run(self, settings: SoakSettings) -> None:
        per_s = await self._capacity()
        await self._arrivals("before", per_s * _NORMAL_SHARE, settings.normal_minutes)
        await self._arrivals("overload", per_s * settings.load, settings.minutes, settings.load)
        await self._arrivals("after", per_s * _NORMAL_SHARE, settings.normal_minutes)

    async def _capacity(self) -> float:
        """Requests per second that are served without refusals."""
        self._begun = self._now()
        until = self._begun + _CAPACITY_S
        requests = itertools.takewhile(lambda _: self._now() < until, itertools.repeat(NORMAL))
        await run_workers(
            requests, _CAPACITY_REQUESTS, lambda profile, _: self._clients.ask(profile)
        )
        return self._end_minute("capacity", 0.0).served_per_s

    async def _arrivals(
        self, phase: Phase, per_s: float, minutes: float, load: float | None = None
    ) -> None:
        """Send `per_s` requests per second at random times, then wait for those that still run.

        With a `load` the requests have all profiles, and the rate grows to `load` times the highest
        rate at which requests were served in a minute.
        """
        until = next_s = self._begun = self._now()
        until += MINUTE_S * minutes
        measured: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while next_s < until:
                await asyncio.sleep(next_s - self._now())
                profile = self._clients.draw() if load else NORMAL
                task = group.create_task(self._clients.ask(profile), name=f"ask {profile.name}")
                measured.add(task)
                task.add_done_callback(measured.discard)
                if self._now() - self._begun >= MINUTE_S:
                    minute = self._end_minute(phase, per_s)
                    per_s = max(per_s, minute.served_per_s * (load or 0.0))
                next_s += self._rng.expovariate(per_s)
            if self._now() - self._begun > 1:
                self._end_minute(phase, per_s)
            if load:
                self._stalled.send_signal(signal.SIGCONT)
            if measured:
                await asyncio.wait(measured, timeout=_PATIENCE_S)
            self._end_minute("rest", 0.0)
            for task in measured:
                task.cancel()

    def _end_minute(self, phase: Phase, per_s: float) -> Minute:
        now, pids = self._now(), self._pids()
        minute = Minute(
            phase=phase,
            elapsed_s=now - self._begun,
            arrivals_per_s=per_s,
            counts=self._clients.take(),
            num_running=self._clients.num_running,
            resident_bytes={name: _resident_bytes(pid) for name, pid in pids.items()},
            pids=pids,
        )
        self._begun = now
        self._record(minute)
        return minute

    def _pids(self) -> dict[str, int]:
        """Process ids, by names that are the same in every run."""
        nodes = {name.rpartition("-")[0] or name: pid for name, pid in self._cluster.pids.items()}
        return {**nodes, "asker": os.getpid()}


@asynccontextmanager
async def _stalled_subscriber(cluster: LocalCluster, name: str) -> AsyncIterator[Process]:
    """A process that has subscribed to all topics of the cluster and has stopped reading."""
    stalled = await processes.spawn(
        (
            *(sys.executable, "-m", "edgecosine.lab.soak.stalled_subscriber"),
            *(cluster.broker_url, f"{Topics(name).root}/#"),
        ),
        cluster.logs / "stalled_subscriber.log",
    )
    try:
        yield stalled
    finally:
        stalled.kill()
        await stalled.wait()


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
