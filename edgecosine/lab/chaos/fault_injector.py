"""Breaks what the schedule says, when it is due, and makes it whole again, whatever happens."""

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
"""How long a target that was started again may take to be online, before the next fault comes."""
_CABLE: Final = ("cut", "lose", "double")


class FaultInjector:
    """Injects faults into one place."""

    def __init__(self, place: ChaosCluster, progress: Progress, notify: Notify) -> None:
        self._place, self._progress, self._notify = place, progress, notify
        self.injected: list[Injected] = []
        self._turns: defaultdict[tuple[str, bool], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Inject all faults; returns when everything is whole again."""
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                if not await self._progress.reached(fault.after):
                    self._notify("no request ends any more: the rest of the schedule is left out")
                    return
                await asyncio.sleep(fault.pause_s)
                group.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        # A node's process and disk have one fault at a time, and so has its cable.
        async with self._turns[fault.place, fault.kind.startswith(_CABLE)]:
            begun_s = self._progress.now()
            self._notify(f"{self._progress}: {fault}")
            try:
                await self._break(fault)
            finally:
                self.injected.append(Injected(fault, begun_s, self._progress.now()))

    async def _break(self, fault: Fault) -> None:
        place = self._place
        match fault.kind:
            case "kill_target" | "kill_drafter" | "kill_broker":
                await self._end(fault.place, signal.SIGKILL)
            case "restart_target" | "restart_broker":
                await self._end(fault.place, signal.SIGTERM)
            case "freeze_target" | "freeze_drafter" | "freeze_broker":
                async with self._frozen(fault.place):
                    await asyncio.sleep(fault.seconds)
            case "cut_target" | "cut_drafter":
                async with self._cut((fault.place,)):
                    await asyncio.sleep(fault.seconds)
            case "cut_all_drafters":
                async with self._cut(place.cluster.drafters):
                    await asyncio.sleep(fault.seconds)
            case "step_target_clock" | "step_drafter_clock" | "step_broker_clock":
                assert place.clocks is not None
                place.clocks.step(fault.place, fault.strength)
            case "fill_disk":
                async with self._full_disk():
                    await asyncio.sleep(fault.seconds)
            case "lose_packets":
                async with self._weather(fault.place, NetworkConditions(loss=fault.strength)):
                    await asyncio.sleep(fault.seconds)
            case "double_packets":
                async with self._weather(
                    fault.place, NetworkConditions(duplication=fault.strength)
                ):
                    await asyncio.sleep(fault.seconds)

    def _signal(self, place: str, number: signal.Signals) -> bool:
        if place == BROKER:
            return self._place.broker.signal(number)
        return self._place.cluster.local.signal(place, number)

    async def _end(self, place: str, number: signal.Signals) -> None:
        """End a process, and wait until who keeps it has started it again."""
        broker, local = self._place.broker, self._place.cluster.local
        if place == BROKER:
            num_starts = broker.num_starts
            if broker.signal(number):
                await broker.restarted(num_starts)
            return
        await end_node(local, place, number)
        if place == TARGET:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETURN_S):
                    await wait_for_target(self._place.cluster.client)

    @contextlib.asynccontextmanager
    async def _frozen(self, place: str) -> AsyncIterator[None]:
        self._signal(place, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(place, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _cut(self, hosts: Sequence[str]) -> AsyncIterator[None]:
        network, cluster = self._place.cluster.network, self._place.cluster
        try:
            for name in hosts:
                await network.partition(cluster.hosts[name])
            yield
        finally:
            for name in hosts:
                await network.heal(cluster.hosts[name])

    @contextlib.asynccontextmanager
    async def _full_disk(self) -> AsyncIterator[None]:
        disk = self._place.disk
        assert disk is not None
        try:
            disk.fill()
            yield
        finally:
            disk.empty()

    @contextlib.asynccontextmanager
    async def _weather(self, name: str, change: NetworkConditions) -> AsyncIterator[None]:
        network, host = self._place.cluster.network, self._place.cluster.hosts[name]
        usual = network.weather(host)
        stormy = msgspec.structs.replace(usual, loss=change.loss, duplication=change.duplication)
        try:
            await network.set_weather(host, stormy)
            yield
        finally:
            await network.set_weather(host, usual)
