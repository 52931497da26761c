"""The cluster of a chaos run, and the parts of it that faults can be injected into."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine.errors import LabError
from edgecosine.lab.chaos.broker import RestartingBroker
from edgecosine.lab.chaos.disk import Disk, small_disk
from edgecosine.lab.chaos.faults import BROKER, KINDS, MEMBER_KINDS, Kind
from edgecosine.lab.chaos.wall_clock import WallClocks, why_no_steps
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.figures import Notify
from edgecosine.lab.network.hosts import Spawn
from edgecosine.local import child_processes
from edgecosine.local.cluster import Environment
from edgecosine.local.embedded_broker import find_mosquitto

KEEPALIVE_S: Final = 4
"""MQTT keepalive of the nodes; the broker declares a node offline after 1.5 times this."""


@dataclass(frozen=True, slots=True)
class ChaosClusterSettings:
    """Settings of the cluster; core lists have the form of `edgecosine node --cores`."""

    drafters: tuple[str, ...]
    members: tuple[str, ...] = ()
    """Models of a committee's members, as in `LabPlan`."""
    ballast: int = 8
    network: NetworkKind = "auto"
    seed: int = 0
    target_cores: str = ""
    drafter_cores: str = ""


@dataclass(frozen=True, slots=True)
class ChaosCluster:
    """A running cluster, and the means to inject faults into it."""

    lab: LabCluster
    broker: RestartingBroker
    clocks: WallClocks | None
    disk: Disk | None
    left_out: Mapping[Kind, str]
    """Faults that are not possible on this machine, with reasons."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Faults that are possible on this machine."""
        return tuple(kind for kind in KINDS if kind not in self.left_out)


@contextlib.asynccontextmanager
async def chaos_cluster(
    settings: ChaosClusterSettings, notify: Notify, spawn: Spawn = child_processes.spawn
) -> AsyncIterator[ChaosCluster]:
    """Start a cluster; entered when all nodes are linked. Everything ends with the block.

    Raises LabError, EngineError and BrokerLost.
    """
    if find_mosquitto() is None:
        raise LabError("chaos needs Mosquitto: apt install mosquitto")
    left_out: dict[Kind, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="edgecosine-chaos-")
        directory = Path(stack.enter_context(scratch))
        clocks = _clocks(directory, left_out)
        disk = _disk(stack, left_out)

        def environment(node_id: str) -> Environment:
            return {} if clocks is None else clocks.environment(node_id)

        broker = RestartingBroker(directory, settings.drafter_cores, environment(BROKER))
        plan = _plan(settings, directory if disk is None else disk.path)
        cluster = await stack.enter_async_context(
            lab_cluster(
                plan, notify, start_broker=broker.start, environment=environment, spawn=spawn
            )
        )
        if not cluster.network.has_multicast:
            reason = (
                "relays carry TCP, which loses no packets: there are no network namespaces here"
            )
            left_out |= {"lose_packets": reason, "double_packets": reason}
        if not settings.members:
            left_out |= dict.fromkeys(MEMBER_KINDS, "no committee: give --committee")
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(broker.keep(), name="keep the broker")
            yield ChaosCluster(cluster, broker, clocks, disk, left_out)
            keeping.cancel()


def _plan(settings: ChaosClusterSettings, state: Path) -> LabPlan:
    keepalive = ("--broker-keepalive", str(KEEPALIVE_S))
    return LabPlan(
        drafters=settings.drafters,
        members=settings.members,
        ballast=settings.ballast,
        network=settings.network,
        seed=settings.seed,
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        target_options=(*keepalive, "--state-dir", str(state / "journal")),
        drafter_options=keepalive,
    )


def _clocks(directory: Path, left_out: dict[Kind, str]) -> WallClocks | None:
    reason = why_no_steps()
    if reason is None:
        return WallClocks(directory)
    left_out |= {
        "step_target_clock": reason, "step_drafter_clock": reason, "step_broker_clock": reason,
    }  # fmt: skip
    return None


def _disk(stack: contextlib.AsyncExitStack, left_out: dict[Kind, str]) -> Disk | None:
    try:
        return stack.enter_context(small_disk())
    except LabError as error:
        left_out["fill_disk"] = str(error)
        return None
