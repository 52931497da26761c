"""A committee of real nodes: its text, and members that are killed, frozen and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.client.cluster_view import NodeView
from edgecosine.errors import RequestError
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request, Sampling
from tests.cluster.shared_cluster import running_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

CLUSTER = "committee"


def _member(node_id: str, model: str) -> LocalNode:
    return LocalNode(
        node_id,
        ("--role", "member", "--model", model, "--member", model, "--weight", "0.5",
         "--threads", "1"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A coordinator without weights, two members, one of them on two nodes, and a drafter; every
    test leaves them running."""
    directory = tmp_path_factory.mktemp("tokenizer")
    for file in (zoo.DIRECTORY / "home").glob("*.json"):
        shutil.copy(file, directory)
    plan = ClusterPlan(
        cluster=CLUSTER,
        target=LocalNode(
            "t",
            ("--role", "target", "--model", str(directory), "--threads", "1", "--stall-timeout",
             "2", "--committee", "home=0.5", "--committee", "legal=0.5"),
        ),
        drafters=(
            _member("m0", "home"),
            _member("m1", "legal"),
            _member("m2", "legal"),
            LocalNode("d", ("--role", "drafter", "--model", "ngram")),
        ),
        broker_port=free_port(),
    )  # fmt: skip
    with running_cluster(plan) as cluster:
        yield cluster


def _request(request_id: str) -> Request:
    return Request(
        "", request_id, "completion", "The parties agree that", max_tokens=200, ignore_eos=True,
        stream=True, sampling=Sampling(temperature=0.8, seed=5),
    )  # fmt: skip


async def _text(client: Client, request_id: str, on_start: Callable[[], object] = list) -> str:
    """The text of an answer; `on_start` is called when its first part has come."""
    has_started = False
    async with contextlib.aclosing(client.ask(_request(request_id))) as steps:
        async for step in steps:
            if isinstance(step, FinalMessage):
                assert has_started
                return step.text
            if not has_started:
                has_started = True
                on_start()
    raise AssertionError("no final message")


async def _until(client: Client, node_id: str, is_so: Callable[[NodeView], bool]) -> None:
    while (view := (await client.nodes()).get(node_id)) is None or not is_so(view):
        await client.changed()


def test_answer_names_its_members_and_reconstructions_are_not_exact(
    cluster: LocalCluster,
) -> None:
    async def final(client: Client, policy: str) -> dict[str, Any]:
        request = replace(_request(policy), policy=policy, max_tokens=12)
        async with contextlib.aclosing(client.ask(request)) as steps:
            async for step in steps:
                if isinstance(step, FinalMessage):
                    info = await client.info()
                    assert step.body["system_fingerprint"] == info["identity"]
                    return step.body["edgecosine"]
        raise AssertionError("no final message")

    async def scenario() -> None:
        async with Client(cluster.broker_url, CLUSTER) as client:
            assert (await client.info())["committee"] == [
                {"member": "home", "weight": 0.5, "model": "home"},
                {"member": "legal", "weight": 0.5, "model": "legal"},
            ]
            exact = await final(client, "edgecosine")
            assert exact["exact"] is True
            assert exact["committee"] == [{"members": ["home", "legal"], "from_token": 0}]
            assert exact["bytes_per_position"] == pytest.approx(136, rel=0.5)
            assert exact["lost_mass"] == 0.0
            assert "verify" in exact["why"]
            for how in ("specfed-renormalise", "specfed-uniform"):
                rebuilt = await final(client, how)
                assert rebuilt["exact"] is False
                assert 0.0 < rebuilt["lost_mass"] < rebuilt["differing_at_most"] < 1.0
            refused = replace(_request("no"), sampling=Sampling(repetition_penalty=1.2))
            with pytest.raises(RequestError, match="repetition_penalty"):
                await anext(client.ask(refused))

    run_patiently(scenario())


async def _until_linked(client: Client, *nodes: str) -> None:
    def is_so(view: NodeView) -> bool:
        return bool(view.state["members"]["legal"]["nodes"] == [*nodes])

    await _until(client, "t", is_so)


def test_replica_goes_on_with_the_same_text_when_a_member_is_killed(cluster: LocalCluster) -> None:
    async def scenario() -> None:
        async with Client(cluster.broker_url, CLUSTER) as client:
            await _until_linked(client, "m1", "m2")
            expected = await _text(client, "1")
            pid = cluster.pid("m1")
            assert await _text(client, "2", lambda: os.kill(pid, signal.SIGKILL)) == expected

    run_patiently(scenario())


def test_request_waits_for_frozen_members_and_its_state_says_so(cluster: LocalCluster) -> None:
    async def scenario() -> None:
        async with Client(cluster.broker_url, CLUSTER) as client:
            await _until_linked(client, "m1", "m2")
            expected = await _text(client, "3")
            for node_id in ("m1", "m2"):
                os.kill(cluster.pid(node_id), signal.SIGSTOP)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(_text(client, "4"), name="waiting")
                await _until(client, "t", lambda view: "member legal away" in str(view))
                assert not waiting.done()
                for node_id in ("m1", "m2"):
                    os.kill(cluster.pid(node_id), signal.SIGCONT)
            assert waiting.result() == expected
            await _until_linked(client, "m1", "m2")

    run_patiently(scenario())
