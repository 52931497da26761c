"""Injects the faults of a schedule when they are due, and reverts them in any case."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from edgecosine.lab.chaos.cluster import ChaosCluster
from edgecosine.lab.chaos.faults import BROKER, TARGET, Fault, Injected
from edgecosine.lab.chaos.progress import Progress
from edgecosine.lab.figures import Notify
from edgecosine.lab.harness import end_node, wait_for_target
from edgecosine.lab.network.conditions import NetworkConditions

_RETURN_S: Final = 60.0
"""How long a restarted target may take to be online before the next fault is injected."""
_CABLE: Final = ("cut", "lose", "double")


class FaultInjector:
    """Injects faults into one cluster."""

    def __init__(self, cluster: ChaosCluster, progress: Progress, notify: Notify) -> None:
        self._cluster, self._progress, self._notify = cluster, progress, notify
        self.injected: list[Injected] = []
        self._locks: defaultdict[tuple[str, bool], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Inject all faults; returns when all are reverted."""
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                if not await self._progress.reached(fault.after):
                    self._notify("stalled, no request ends: the remaining faults are left out")
                    return
                await asyncio.sleep(fault.pause_s)
                group.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        # A node's process and disk have one fault at a time; so does its cable.
        async with self._locks[fault.place, fault.kind.startswith(_CABLE)]:
            begun_s = self._progress.now()
            self._notify(f"{self._progress}: {fault}")
            try:
                await self._break(fault)
            finally:
                self.injected.append(Injected(fault, begun_s, self._progress.now()))

    async def _break(self, fault: Fault) -> None:
        cluster = self._cluster
        match fault.kind:
            case "kill_target" | "kill_drafter" | "kill_member" | "kill_broker":
                await self._end(fault.place, signal.SIGKILL)
            case "restart_target" | "restart_broker":
                await self._end(fault.place, signal.SIGTERM)
            case "freeze_target" | "freeze_drafter" | "freeze_member" | "freeze_broker":
                async with self._frozen(fault.place):
                    await asyncio.sleep(fault.seconds)
            case "cut_target" | "cut_drafter" | "cut_member":
                async with self._cut((fault.place,)):
                    await asyncio.sleep(fault.seconds)
            case "cut_all_drafters":
                async with self._cut(cluster.lab.drafters):
                    await asyncio.sleep(fault.seconds)
            case "step_target_clock" | "step_drafter_clock" | "step_broker_clock":
                assert cluster.clocks is not None
                cluster.clocks.step(fault.place, fault.strength)
            case "fill_disk":
                async with self._full_disk():
                    await asyncio.sleep(fault.seconds)
            case "lose_packets":
                async with self._conditions(fault.place, NetworkConditions(loss=fault.strength)):
                    await asyncio.sleep(fault.seconds)
            case "double_packets":
                async with self._conditions(
                    fault.place, NetworkConditions(duplication=fault.strength)
                ):
                    await asyncio.sleep(fault.seconds)

    def _signal(self, node_id: str, number: signal.Signals) -> bool:
        if node_id == BROKER:
            return self._cluster.broker.signal(number)
        return self._cluster.lab.local.signal(node_id, number)

    async def _end(self, node_id: str, number: signal.Signals) -> None:
        """End a process, and wait until it was restarted."""
        broker, local = self._cluster.broker, self._cluster.lab.local
        if node_id == BROKER:
            num_starts = broker.num_starts
            if broker.signal(number):
                await broker.restarted(num_starts)
            return
        await end_node(local, node_id, number)
        if node_id == TARGET:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETURN_S):
                    await wait_for_target(self._cluster.lab.client)

    @contextlib.asynccontextmanager
    async def _frozen(self, node_id: str) -> AsyncIterator[None]:
        self._signal(node_id, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(node_id, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _cut(self, hosts: Sequence[str]) -> AsyncIterator[None]:
        network, cluster = self._cluster.lab.network, self._cluster.lab
        try:
            for name in hosts:
                await network.partition(cluster.hosts[name])
            yield
        finally:
            for name in hosts:
                await network.heal(cluster.hosts[name])

    @contextlib.asynccontextmanager
    async def _full_disk(self) -> AsyncIterator[None]:
        disk = self._cluster.disk
        assert disk is not None
        try:
            disk.fill()
            yield
        finally:
            disk.empty()

    @contextlib.asynccontextmanager
    async def _conditions(self, name: str, change: NetworkConditions) -> AsyncIterator[None]:
        network, host = self._cluster.lab.network, self._cluster.lab.hosts[name]
        former = network.conditions(host)
        changed = msgspec.structs.replace(former, loss=change.loss, duplication=change.duplication)
        try:
            await network.set_conditions(host, changed)
            yield
        finally:
            await network.set_conditions(host, former)
