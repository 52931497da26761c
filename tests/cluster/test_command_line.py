"""What a user gets who makes a mistake: the reason and what to do, and a non-zero exit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgecosine import zoo
from edgecosine.node.client import Client
from edgecosine.node.local_cluster import LocalCluster, local_plan
from tests.mqtt_fixtures import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)


def _node(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgecosine", "node", "--no-mdns", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = _node("--role", "drafter", "--model", str(tmp_path), "--broker", "none")
    assert done.returncode == 1
    assert "safetensors" in done.stderr


def test_unknown_model_names_the_ones_that_are_there() -> None:
    done = _node("--role", "drafter", "--model", "no-such-model", "--broker", "none")
    assert done.returncode == 1
    assert "no-such-model" in done.stderr
    assert zoo.TARGET in done.stderr


def test_occupied_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _node(
            "--role", "drafter", "--model", "ngram", "--broker", "none",
            "--listen", f"127.0.0.1:{port}",
        )  # fmt: skip
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_target_needs_a_broker_url() -> None:
    done = _node("--role", "target", "--model", "target", "--broker", "none")
    assert done.returncode == 1
    assert "MQTT" in done.stderr


def test_node_without_a_broker_says_so_and_lives_on() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "edgecosine", "node", "--no-mdns", "--role", "target",
        "--model", "target", "--broker", url,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "no broker at" in line:
                    break
            else:
                pytest.fail("the node ended")
            assert "edgecosine broker" in line
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
        assert process.wait(20) == 130


def test_second_target_of_a_cluster_is_refused() -> None:
    async def story() -> None:
        plan = local_plan(
            zoo.TARGET, (), cluster="two-targets", ballast=1, target_cores="", drafter_cores="",
            broker=None, broker_port=free_port(),
        )  # fmt: skip
        async with LocalCluster(plan, print) as cluster:
            done = _node(
                "--role", "target", "--model", "target", "--broker", cluster.broker_url,
                "--cluster", plan.cluster,
            )  # fmt: skip
            assert done.returncode == 1
            assert plan.target.node_id in done.stderr
            async with Client(cluster.broker_url, plan.cluster) as client:
                assert await client.is_online()
            os.kill(cluster.pid(plan.target.node_id), 0)

    run_patiently(story())
