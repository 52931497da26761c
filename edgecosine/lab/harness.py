"""The harness of measurements on a cluster of this machine: start it, end its nodes, wait for them.

`bench faults`, `soak` and `chaos` run on it; each has its own schedule of faults and its own check.
"""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost
from edgecosine.lab.figures import Notify
from edgecosine.lab.network.hosts import free_port
from edgecosine.local.cluster import Environment, LocalCluster, launch_here
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode, local_plan

TARGET = "target"


def fresh_plan(
    purpose: str, target: str, drafters: Sequence[str], *, ballast: int = 1, **options: Any
) -> ClusterPlan:
    """A plan with a new cluster name and a broker of its own; `options` are those of
    `local_plan`."""
    return local_plan(
        target, drafters, cluster=_fresh_name(purpose), ballast=ballast, broker=None,
        broker_port=free_port(), **options,
    )  # fmt: skip


def target_alone(purpose: str, model: str, *options: str) -> ClusterPlan:
    """A plan for one target without drafters and mDNS; its node id is `TARGET`."""
    node = LocalNode(TARGET, ("--role", "target", "--model", model, "--no-mdns", *options))
    return ClusterPlan(_fresh_name(purpose), node, (), broker_port=free_port())


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A local cluster and a client of it."""

    local: LocalCluster
    client: Client
    started_s: dict[str, float]
    """The latest start of each node, in seconds of the performance counter."""

    def seconds_since_start(self, node_id: str) -> float:
        """Age of a node's process."""
        return time.perf_counter() - self.started_s[node_id]


@asynccontextmanager
async def running_cluster(
    plan: ClusterPlan, notify: Notify, **client_options: Any
) -> AsyncIterator[RunningCluster]:
    """Start the cluster and a client; both end with the block.

    Raises EngineError when a node does not start, and BrokerLost.
    """
    started_s: dict[str, float] = {}

    async def launch(node_id: str, command: Sequence[str], log: Path, env: Environment) -> Any:
        started_s[node_id] = time.perf_counter()
        return await launch_here(node_id, command, log, env)

    async with (
        LocalCluster(plan, notify, launch) as local,
        Client(local.broker_url, plan.cluster, **client_options) as client,
    ):
        yield RunningCluster(local, client, started_s)


async def end_node(local: LocalCluster, node_id: str, number: signal.Signals) -> None:
    """Send a node a signal that ends it, and wait until it was started again."""
    former = local.pid(node_id)
    if local.signal(node_id, number):
        await local.restarted(node_id, former)


async def wait_for_target(client: Client, *, is_online: bool = True) -> None:
    """Wait until the client sees a target online, or with `is_online=False` no target.

    Without a broker the client sees no target.
    """
    while await _is_online(client) != is_online:
        await client.changed()


async def wait_for_drafters(client: Client, drafters: Sequence[str] = ()) -> None:
    """Wait until a target is linked with these drafters, or with any drafter at all."""
    while True:
        for view in (await client.nodes()).values():
            linked = view.state.get("drafters") or {}
            if set(drafters) <= linked.keys() if drafters else linked:
                return
        await client.changed()


async def _is_online(client: Client) -> bool:
    try:
        return await client.is_online()
    except BrokerLost:
        return False


def _fresh_name(purpose: str) -> str:
    return f"{purpose}-{secrets.token_hex(3)}"
