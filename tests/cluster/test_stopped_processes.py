"""Real nodes that are stopped by SIGSTOP and continued by SIGCONT."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request
from tests.cluster.shared_cluster import running_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

CLUSTER = "stopped"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A target and a drafter; every test leaves them running."""
    plan = ClusterPlan(
        cluster=CLUSTER,
        target=LocalNode(
            "t",
            (
                "--role", "target", "--model", zoo.TARGET, "--threads", "1",
                "--broker-keepalive", "2",
            ),
        ),
        drafters=(LocalNode("d", ("--role", "drafter", "--model", "ngram")),),
        broker_port=free_port(),
    )  # fmt: skip
    with running_cluster(plan) as cluster:
        yield cluster


def _client(cluster: LocalCluster) -> Client:
    return Client(cluster.broker_url, CLUSTER, patience_s=3, retry_patience_s=0)


async def _text(client: Client, request_id: str) -> str:
    request = Request("", request_id, "completion", "def main():", max_tokens=16, ignore_eos=True)
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, FinalMessage):
                return step.text
    raise AssertionError("no final message")


async def _until(client: Client, node_id: str, state: str) -> None:
    """Wait until the cluster view shows a node in a state."""
    while True:
        view = (await client.nodes()).get(node_id)
        if view is not None and view.status is not None and view.status.state == state:
            return
        await client.changed()


def test_stopped_target_is_offline_for_clients_until_it_continues(cluster: LocalCluster) -> None:
    async def scenario() -> None:
        async with _client(cluster) as client:
            await _until(client, "t", "ready")
            text = await _text(client, "1")
            os.kill(cluster.pid("t"), signal.SIGSTOP)
            await _until(client, "t", "lost")
            while await client.is_online():
                await client.changed()
            with pytest.raises(RequestError) as refusal:
                await _text(client, "2")
            assert refusal.value.code == "gateway_offline"
            os.kill(cluster.pid("t"), signal.SIGCONT)
            while not await client.is_online():
                await client.changed()
            await _until(client, "t", "ready")
            assert await _text(client, "3") == text

    run_patiently(scenario())


def test_stopped_drafter_is_unlinked_and_links_again_when_it_continues(
    cluster: LocalCluster,
) -> None:
    async def scenario() -> None:
        async with _client(cluster) as client:
            text = await _text(client, "1")
            os.kill(cluster.pid("d"), signal.SIGSTOP)
            assert await _text(client, "2") == text
            await cluster.wait_until_linked(0)
            os.kill(cluster.pid("d"), signal.SIGCONT)
            await cluster.wait_until_linked(1)
            assert await _text(client, "3") == text

    run_patiently(scenario())
