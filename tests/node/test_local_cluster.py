"""Who keeps nodes running, and when no more."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgecosine.node import processes
from edgecosine.node.local_cluster import ClusterPlan, LocalCluster, Member, local_plan
from tests.node.wire_fixtures import run


def test_node_that_waits_to_be_started_again_is_left_when_the_cluster_ends() -> None:
    starts: list[str] = []

    async def launch(
        node_id: str, _: Sequence[str], log: Path, __: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        starts.append(node_id)
        return await processes.spawn((sys.executable, "-S", "-c", ""), log)

    async def story() -> None:
        member = Member("t", ())

        def end(_: str) -> None:
            cluster._stopped.add("t")

        cluster = LocalCluster(ClusterPlan("c", member, (), "mqtt://localhost"), end, launch)
        cluster._is_ready = True
        await cluster._start(member)
        await cluster._keep(member)
        await cluster._stop_all()

    run(story())
    assert starts == ["t"]


def test_drafters_take_devices_in_turns() -> None:
    plan = local_plan(
        "target", ("a", "b", "c"), cluster="c", ballast=1, target_cores="0", drafter_cores="1",
        broker=None, broker_port=1883, target_device="cuda:0", drafter_devices=("cuda:0", "cpu"),
    )  # fmt: skip
    members = [member.options for member in (plan.target, *plan.drafters)]
    devices = [options[options.index("--device") + 1] for options in members]
    assert devices == ["cuda:0", "cuda:0", "cpu", "cuda:0"]
