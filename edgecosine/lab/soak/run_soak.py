"""A soak: more is asked than a cluster can do, for long, and then normal service again.

Capacity is measured first, by as many requests at work as the target takes, and normal latency at
half of that. Then requests arrive by chance, `load` times as many as capacity, from clients of all
manners, while a subscriber stops reading. Capacity is taken to be higher when a minute shows that,
never to be lower, so that a machine with other work only adds to the overload. As such a machine
makes latencies of an hour ago worth little, the cluster is compared with a fresh one, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
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
from edgecosine.lab.figures import Figure, interval, write_report
from edgecosine.lab.load_generator import closed_loop, make_jobs
from edgecosine.lab.network.hosts import free_port
from edgecosine.lab.soak.clients import MANNERS, NORMAL, Clients
from edgecosine.lab.soak.record import MINUTE_S, Minute, Phase, soak_figures
from edgecosine.local import child_processes as processes
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, local_plan
from edgecosine.protocol.api.request import DEFAULT_POLICY
from edgecosine.protocol.api.topics import Topics

_NORMAL_SHARE = 0.5
"""Of capacity, in normal service."""
_CAPACITY_S = 40.0
_CROWD = 16
"""Requests at work while capacity is measured: twice what the target has places for."""
_PAIRS = 20
"""Requests to the old cluster and to a fresh one, in turn, at the end."""
_PATIENCE_S = 300.0
"""With which clients wait for a gateway that lost its broker, and we for the last answers."""


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """What to do for how long. `load` is what is asked over what can be done."""

    minutes: float
    load: float
    normal_minutes: float
    """Of normal service, once before and once after."""
    ballast: int
    seed: int
    target_cores: str
    drafter_cores: str
    drafters: tuple[str, ...] = zoo.drafter_names()[:2]


async def run_soak(
    settings: SoakSettings,
    found: dict[str, Figure],
    report: Path | None,
    say: Callable[[str], None],
) -> None:
    """Run it. The figures are found, and the report is written, after every minute.

    Raises EngineError, BrokerLost, and LabError where memory cannot be told.
    """
    if not _resident_bytes(os.getpid()):
        raise LabError("memory is read from /proc, which is not here")
    minutes: list[Minute] = []

    def write() -> None:
        if report is not None:
            write_report(report, found, [each.record() for each in minutes], **asdict(settings))

    def put_down(minute: Minute) -> None:
        minutes.append(minute)
        say(str(minute))
        found.update(soak_figures(minutes))
        write()

    async with contextlib.AsyncExitStack() as stack:
        plan = _plan(settings)
        cluster = await stack.enter_async_context(LocalCluster(plan, say))
        connect = partial(Client, patience_s=_PATIENCE_S, retry_patience_s=0)
        clients = [
            await stack.enter_async_context(connect(cluster.broker_url, plan.cluster))
            for _ in MANNERS
        ]
        sleeper = await stack.enter_async_context(_sleeping(cluster, plan.cluster))
        soak = _Soak(cluster, Clients(clients, MANNERS, settings.seed), sleeper, put_down)
        await soak.run(settings)
        plan = _plan(settings)
        other = await stack.enter_async_context(LocalCluster(plan, say))
        fresh = await stack.enter_async_context(connect(other.broker_url, plan.cluster))
        found["soak_over_fresh_latency_ratio"] = await _over_fresh(clients[0], fresh)
        write()


def _plan(settings: SoakSettings) -> ClusterPlan:
    return local_plan(
        zoo.TARGET, settings.drafters, cluster=f"soak-{secrets.token_hex(3)}",
        ballast=settings.ballast, target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores, broker=None, broker_port=free_port(),
    )  # fmt: skip


async def _over_fresh(old: Client, fresh: Client) -> Figure:
    """Latency of a cluster over that of one that has just begun, each asked in turn."""
    ratios = []
    for number in range(_PAIRS + 1):
        [job] = make_jobs(1, offset=number, policy=DEFAULT_POLICY, temperature=0.0)
        turns = (old, fresh) if number % 2 else (fresh, old)
        loads = {client: await closed_loop(client, [job], 1) for client in turns}
        ratios.append(loads[old].elapsed_s / loads[fresh].elapsed_s)
    return interval(ratios[1:])  # the first one wakes the fresh one up


class _Soak:
    """The phases, one after the other."""

    def __init__(
        self,
        cluster: LocalCluster,
        clients: Clients,
        sleeper: Process,
        put_down: Callable[[Minute], None],
    ) -> None:
        self._cluster, self._clients, self._sleeper = cluster, clients, sleeper
        self._put_down = put_down
        self._chance = random.Random(0)
        self._now = asyncio.get_running_loop().time
        self._begun = 0.0

    async def run(self, settings: SoakSettings) -> None:
        per_s = await self._capacity()
        await self._arrivals("before", per_s * _NORMAL_SHARE, settings.normal_minutes)
        await self._arrivals("overload", per_s * settings.load, settings.minutes, settings.load)
        await self._arrivals("after", per_s * _NORMAL_SHARE, settings.normal_minutes)

    async def _capacity(self) -> float:
        """Requests a second that are served when nobody has to be refused."""
        self._begun = self._now()

        async def ask_in_turn() -> None:
            while self._now() - self._begun < _CAPACITY_S:
                await self._clients.ask(NORMAL)

        async with asyncio.TaskGroup() as group:
            for asker in range(_CROWD):
                group.create_task(ask_in_turn(), name=f"asker {asker}")
        return self._end_minute("capacity", 0.0).served_per_s

    async def _arrivals(
        self, phase: Phase, per_s: float, minutes: float, load: float | None = None
    ) -> None:
        """So many requests a second by chance, by all clients where there is a `load`, which what
        was served in a minute times that is asked at least; then the rest."""
        until = next_s = self._begun = self._now()
        until += MINUTE_S * minutes
        asked: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while next_s < until:
                await asyncio.sleep(next_s - self._now())
                manner = self._clients.draw() if load else NORMAL
                task = group.create_task(self._clients.ask(manner), name=f"ask {manner.name}")
                asked.add(task)
                task.add_done_callback(asked.discard)
                if self._now() - self._begun >= MINUTE_S:
                    minute = self._end_minute(phase, per_s)
                    per_s = max(per_s, minute.served_per_s * (load or 0.0))
                next_s += self._chance.expovariate(per_s)
            if self._now() - self._begun > 1:
                self._end_minute(phase, per_s)
            if load:
                self._sleeper.send_signal(signal.SIGCONT)
            if asked:
                await asyncio.wait(asked, timeout=_PATIENCE_S)
            self._end_minute("rest", 0.0)
            for task in asked:
                task.cancel()

    def _end_minute(self, phase: Phase, per_s: float) -> Minute:
        now, pids = self._now(), self._pids()
        minute = Minute(
            phase=phase,
            elapsed_s=now - self._begun,
            arrivals_per_s=per_s,
            tally=self._clients.take(),
            num_at_work=self._clients.num_at_work,
            resident_bytes={name: _resident_bytes(pid) for name, pid in pids.items()},
            pids=pids,
        )
        self._begun = now
        self._put_down(minute)
        return minute

    def _pids(self) -> dict[str, int]:
        """By names that are the same in every run."""
        nodes = {name.rpartition("-")[0] or name: pid for name, pid in self._cluster.pids.items()}
        return {**nodes, "asker": os.getpid()}


@asynccontextmanager
async def _sleeping(cluster: LocalCluster, name: str) -> AsyncIterator[Process]:
    """Somebody who subscribed to everything and does not read."""
    sleeper = await processes.spawn(
        (
            *(sys.executable, "-m", "edgecosine.lab.soak.stalled_subscriber"),
            *(cluster.broker_url, f"{Topics(name).root}/#"),
        ),
        cluster.logs / "sleeper.log",
    )
    try:
        yield sleeper
    finally:
        sleeper.kill()
        await sleeper.wait()


def _resident_bytes(pid: int) -> int:
    """0 where the process has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
