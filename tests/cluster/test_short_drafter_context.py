"""Real processes: a drafter whose context is shorter than a request's text."""

from __future__ import annotations

import pytest

from edgecosine.client.client import Client
from edgecosine.lab.load_generator import ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

LONG = "def main():\n    " + "x = 1\n    " * 150


def test_no_draft_is_requested_beyond_the_drafters_context() -> None:
    async def scenario() -> None:
        drafter = ("--role", "drafter", "--model", "python", "--context", "64")
        plan = ClusterPlan(
            cluster="short-context",
            target=LocalNode("t", ("--role", "target", "--model", "generalist")),
            drafters=(LocalNode("d", drafter),),
            broker_port=free_port(),
        )
        async with (
            forked_cluster(plan) as cluster,
            Client(cluster.broker_url, plan.cluster) as client,
        ):
            pid = cluster.pid("d")

            async def answer(prompt: str) -> MeasuredAnswer:
                return await ask(client, prompt, domain="", policy="specinfer", max_tokens=24)

            long = await answer(LONG)
            assert long.num_tokens == 24
            assert long.num_accepted == 0
            assert "d reads 64 tokens at most, the text has" in long.plan
            assert (await answer("def main():")).num_accepted > 0
            assert cluster.pid("d") == pid

    run_patiently(scenario())
