"""Whole clusters in the lab: nodes connect and answer under simulated network conditions."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgecosine import zoo
from edgecosine.cli import main
from edgecosine.errors import LabError
from edgecosine.lab.change_network import ChangeRequest, listening, request_change
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.load_generator import ask
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions
from edgecosine.lab.network.netns import namespaces
from edgecosine.lab.simulation.processors import read_processor_times
from tests.support.forked_nodes import spawn
from tests.support.mqtt import run_patiently

FAULT = namespaces.why_not()
FAR = NetworkConditions(delay_ms=30)

pytestmark = pytest.mark.timeout(300)


async def _rtts(cluster: LabCluster) -> dict[str, float]:
    """Round-trip times in milliseconds measured by the target, by drafter."""
    target = (await cluster.client.nodes())["target"].state
    return {name: view["rtt_ms"] for name, view in target["drafters"].items() if view["rtt_ms"]}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "namespaces",
            marks=[
                pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}"),
                pytest.mark.network,
            ],
        ),
        "relays",
    ],
)
def test_nodes_connect_and_answer_under_their_network_conditions(kind: NetworkKind) -> None:
    async def scenario() -> None:
        plan = LabPlan(drafters=("ngram", "ngram"), ballast=1, conditions=FAR, network=kind)
        async with lab_cluster(plan, print, spawn=spawn) as cluster, listening(cluster) as path:
            while len(rtts := await _rtts(cluster)) < 2:
                await cluster.client.changed()
            assert min(rtts.values()) >= 2 * FAR.delay_ms

            change = ChangeRequest(("ngram-1",), conditions=IDEAL)
            applied = await asyncio.to_thread(request_change, path, change)
            assert applied == {"ngram-0": "30 ms", "ngram-1": "0 ms"}
            while (rtts := await _rtts(cluster))["ngram-1"] >= 2 * FAR.delay_ms:
                await cluster.client.changed()
            assert rtts["ngram-0"] >= 2 * FAR.delay_ms

            before, prompt = read_processor_times(cluster), zoo.prompts()["python"][0]
            texts = {
                (await ask(cluster.client, prompt, domain="", policy=p, max_tokens=24)).text
                for p in ("target-alone", "edgecosine")
            }
            assert len(texts) == 1
            spent = read_processor_times(cluster).since(before)
            assert min(spent.target_loop_s, spent.drafter_loops_s, spent.traffic_s) > 0.0

            with pytest.raises(LabError, match="no drafter missing; there are ngram-0, ngram-1"):
                await asyncio.to_thread(
                    request_change, path, ChangeRequest(("missing",), is_cut=True)
                )
            await asyncio.to_thread(request_change, path, ChangeRequest(is_cut=True))
            await cluster.local.wait_until_linked(0)
            await asyncio.to_thread(request_change, path, ChangeRequest(is_cut=False))
            await cluster.local.wait_until_linked(2)

    run_patiently(scenario())
    if FAULT is None:
        done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
        assert f"{namespaces.PREFIX}-{os.getpid()}-" not in done.stdout


def test_lab_command_runs_until_interrupted_and_changes_network_conditions() -> None:
    command = [sys.executable, "-m", "edgecosine", "lab", "up", "--network", "relays"]
    command += ["--drafter", "ngram", "--ballast", "1", "--delay-ms", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        try:
            lines = list(itertools.takewhile(lambda line: "lab network" not in line, lab.stdout))
            cluster = re.search(r"--cluster (\S+)", "".join(lines))
            assert cluster is not None
            for arguments, printed in (
                (["network", "--delay-ms", "7", "--jitter-ms", "2"], "ngram-0: 7 ms, jitter 2 ms"),
                (["cut", "ngram-0"], "ngram-0: cut"),
                (["cut", "ngram-0", "--mend"], "ngram-0: 7 ms, jitter 2 ms"),
            ):
                done = CliRunner().invoke(main, ["lab", *arguments, "--cluster", cluster[1]])
                assert done.output == f"{printed}\n"
            refused = CliRunner().invoke(
                main, ["lab", "network", "--loss", "0.5", "--cluster", cluster[1]]
            )
            assert "needs network namespaces" in refused.output
        finally:
            lab.send_signal(signal.SIGINT)
        assert lab.wait(60) == 130
    after = CliRunner().invoke(main, ["lab", "network", "--cluster", cluster[1]])
    assert after.exit_code == 1
    assert "select one lab" in after.output
