"""A local cluster starts nodes, restarts those that end, and stops all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgecosine.client.client import Client
from edgecosine.errors import EngineError
from edgecosine.local import child_processes as processes
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode, local_plan
from edgecosine.mqtt.broker_address import BrokerAddress
from tests.node.links.wire_fixtures import run
from tests.support.mqtt import free_port, needs_mosquitto

SLEEPER = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")


async def launch_sleeper(
    _: str, __: Sequence[str], log: Path, ___: Mapping[str, str]
) -> asyncio.subprocess.Process:
    """A node that does nothing."""
    return await processes.spawn(SLEEPER, log)


async def at_once() -> None:
    """A replacement for waiting until all nodes are linked."""


def test_node_is_not_restarted_after_the_cluster_has_ended() -> None:
    starts: list[str] = []

    async def launch(
        node_id: str, _: Sequence[str], log: Path, __: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        starts.append(node_id)
        return await processes.spawn((sys.executable, "-S", "-c", ""), log)

    async def main() -> None:
        member = LocalNode("t", ())

        def end(_: str) -> None:
            cluster._stopped.add("t")

        cluster = LocalCluster(ClusterPlan("c", member, (), "mqtt://localhost"), end, launch)
        cluster._is_ready = True
        await cluster._start(member)
        await cluster._keep(member)
        await cluster._stop_all()

    run(main())
    assert starts == ["t"]


def test_devices_are_assigned_to_drafters_in_rotation() -> None:
    plan = local_plan(
        "target", ("a", "b", "c"), cluster="c", ballast=1, target_cores="0", drafter_cores="1",
        broker=None, broker_port=1883, target_device="cuda:0", drafter_devices=("cuda:0", "cpu"),
    )  # fmt: skip
    members = [member.options for member in (plan.target, *plan.drafters)]
    devices = [options[options.index("--device") + 1] for options in members]
    assert devices == ["cuda:0", "cuda:0", "cpu", "cuda:0"]


def plan_of(port: int = 0, drafters: Sequence[str] = (), broker: str | None = None) -> ClusterPlan:
    return local_plan(
        "target", drafters, cluster="c", ballast=1, target_cores="", drafter_cores="",
        broker=broker, broker_port=port or free_port(),
    )  # fmt: skip


def test_node_ids_are_unique_and_valid() -> None:
    long = "x" * 50
    models = ("ngram", "ngram", "target", "a/Qwen", "b/Qwen", "QWEN", f"{long}1", f"{long}2", "小")
    plan = plan_of(drafters=models)
    ids = [member.node_id for member in (plan.target, *plan.drafters)]
    assert len({node_id.lower() for node_id in ids}) == 1 + len(models)
    assert all(node_id.isascii() and len(node_id) <= 64 for node_id in ids)
    names = [node_id.rpartition("-")[0] for node_id in ids]
    assert names[:6] == ["target", "ngram", "ngram-2", "target-2", "Qwen", "Qwen-2"]


@needs_mosquitto
def test_cluster_reports_the_node_that_cannot_start() -> None:
    async def launch(
        node_id: str, _: Sequence[str], log: Path, __: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        program = "import sys; sys.exit('a log line\\nError: no such model')"
        is_target = node_id.startswith("target")
        command = SLEEPER if is_target else (sys.executable, "-S", "-c", program)
        return await processes.spawn(command, log)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(2):
            with pytest.raises(
                EngineError, match=r"^ngram-.* ended with exit code 1: no such model$"
            ):
                async with LocalCluster(plan_of(drafters=["ngram"]), print, launch):
                    pass
            assert task.cancelling() == 0

    run(main())


@needs_mosquitto
def test_cluster_that_does_not_link_reports_where_each_node_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgecosine.local.cluster.START_TIMEOUT_S", 0.2)

    async def launch(
        node_id: str, _: Sequence[str], log: Path, __: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        await asyncio.to_thread(log.write_text, f"started\nreading the weights of {node_id}\n")
        return await processes.spawn(SLEEPER, log)

    async def main() -> None:
        plan = plan_of(drafters=["ngram"])
        with pytest.raises(EngineError, match="did not link") as raised:
            async with LocalCluster(plan, print, launch):
                pass
        for node in (plan.target, *plan.drafters):
            assert f"{node.node_id}: reading the weights of {node.node_id}" in str(raised.value)

    run(main())


@needs_mosquitto
def test_error_inside_the_block_is_raised_and_all_processes_end() -> None:
    async def main() -> None:
        cluster = LocalCluster(plan_of(), print, launch_sleeper)
        cluster._wait_until_linked = at_once  # type: ignore[method-assign]
        with pytest.raises(KeyError, match="mine"):
            async with cluster:
                raise KeyError("mine")
        assert all(process.returncode is not None for process in cluster._processes.values())

    run(main())


@needs_mosquitto
def test_killed_broker_is_restarted_at_its_port() -> None:
    async def main() -> None:
        messages: list[str] = []
        cluster = LocalCluster(plan_of(), messages.append, launch_sleeper)
        cluster._wait_until_linked = at_once  # type: ignore[method-assign]
        async with cluster:
            former = cluster.pids["broker"]
            for _ in range(2):
                os.kill(cluster.pids["broker"], signal.SIGKILL)
                async with asyncio.timeout(10):
                    while not await _answers(cluster.broker_url, former, cluster):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                former = cluster.pids["broker"]
        assert sum("the broker was ended by SIGKILL" in line for line in messages) == 2

    run(main())


async def _answers(url: str, former: int, cluster: LocalCluster) -> bool:
    if cluster.pids["broker"] == former:
        return False
    try:
        async with Client(url, "c"):
            return True
    except Exception:  # noqa: BLE001 -- the broker may not have started yet
        return False


@needs_mosquitto
def test_up_reports_why_a_node_cannot_start_and_fails() -> None:
    command = ("up", "--target", "nosuch", "--drafter", "ngram", "--broker-port", str(free_port()))
    done = subprocess.run(
        [sys.executable, "-m", "edgecosine", *command], capture_output=True, check=False,
        env=os.environ | {"EDGECOSINE_SLOTS": "0"}, text=True, timeout=60,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(("Error: target-", "Error: ngram-"))
    assert "ended with exit code 2: Invalid value for '--slots'" in last
    assert "logs: " in done.stdout  # before the nodes start, which takes minutes for large models


@needs_mosquitto
def test_up_beside_another_broker_names_the_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = ("up", "--target", "target", "--http", "none", "--broker-port", port)
        done = subprocess.run(
            [sys.executable, "-m", "edgecosine", *command], capture_output=True, check=False,
            text=True, timeout=60,
        )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"Error: 127.0.0.1:{port} is in use by another program: ")
    assert "--broker-port" in last
    assert f"--broker mqtt://127.0.0.1:{port}" in last


@needs_mosquitto
def test_nodes_do_not_inherit_the_environment_of_another_broker() -> None:
    envs: list[Mapping[str, str]] = []

    async def launch(
        _: str, __: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        envs.append(env)
        return await processes.spawn(SLEEPER, log)

    async def main() -> None:
        for url in (None, "mqtts://elsewhere"):
            access = BrokerAddress.parse(url) if url else None
            plan = replace(plan_of(broker=url), access=access)
            cluster = LocalCluster(plan, print, launch)
            cluster._wait_until_linked = at_once  # type: ignore[method-assign]
            async with cluster:
                pass

    run(main())
    ours, elsewhere = envs
    assert ours["EDGECOSINE_BROKER"].startswith("mqtt://127.0.0.1:")
    for name in ("CA", "CERTIFICATE", "USERNAME", "PASSWORD", "PASSWORD_FILE"):
        assert ours[f"EDGECOSINE_BROKER_{name}"] == ""
        assert f"EDGECOSINE_BROKER_{name}" not in elsewhere
    assert ours["EDGECOSINE_CONFIG"] == elsewhere["EDGECOSINE_CONFIG"] == ""
