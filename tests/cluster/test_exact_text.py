"""Whole clusters of real processes: the text is the target's own, and drafts are accepted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

import pytest

from edgecosine import zoo
from edgecosine.cli.up import split_cores
from edgecosine.client.client import Client
from edgecosine.lab.load_generator import ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode, local_plan
from edgecosine.protocol.api.request import Sampling
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

MAX_TOKENS = 24
ALWAYS_DRAFTED = "specinfer"
"""A policy that requests drafts in each round, whether or not they pay on this machine."""
SAMPLINGS = (Sampling(), Sampling(temperature=0.8, seed=7), Sampling(1.0, top_p=0.9, seed=2**63))


@dataclass(frozen=True)
class Question:
    prompt: str
    sampling: Sampling


def _questions() -> list[Question]:
    prompts = [prompt for texts in zoo.prompts().values() for prompt in texts[-1:]]
    return [Question(prompt, sampling) for prompt in prompts for sampling in SAMPLINGS]


def _plan(drafters: tuple[str, ...], cluster: str) -> ClusterPlan:
    target_cores, drafter_cores = split_cores()
    return local_plan(
        zoo.TARGET, drafters, cluster=cluster, ballast=1, target_cores=target_cores,
        drafter_cores=drafter_cores,
        broker=None, broker_port=free_port(),
    )  # fmt: skip


async def _ask_all(client: Client, questions: list[Question], policy: str) -> list[MeasuredAnswer]:
    """Send all questions at once."""

    def one(question: Question) -> Coroutine[None, None, MeasuredAnswer]:
        return ask(
            client,
            question.prompt,
            domain="",
            policy=policy,
            max_tokens=MAX_TOKENS,
            sampling=question.sampling,
            on_text=lambda _: None,
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(question)) for question in questions]
    return [task.result() for task in tasks]


def _texts(answers: list[MeasuredAnswer]) -> list[str]:
    return [answer.text for answer in answers]


def _acceptance(answers: list[MeasuredAnswer]) -> float:
    """Mean number of accepted draft tokens per round."""
    return sum(a.num_accepted for a in answers) / sum(a.num_rounds for a in answers)


@contextlib.asynccontextmanager
async def _running(plan: ClusterPlan) -> AsyncIterator[tuple[LocalCluster, Client]]:
    async with (
        forked_cluster(plan) as cluster,
        Client(cluster.broker_url, plan.cluster) as client,
    ):
        yield cluster, client


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Texts of a target without drafters."""

    async def scenario() -> list[str]:
        async with _running(_plan((), "exact-alone")) as (_, client):
            return _texts(await _ask_all(client, _questions(), "target-alone"))

    return run_patiently(scenario())


def test_text_is_exact_while_drafters_are_killed_and_restarted(expected: list[str]) -> None:
    async def scenario() -> None:
        questions = _questions()
        plan = _plan(zoo.drafter_names()[:4], "exact-killed")
        async with _running(plan) as (cluster, client):
            assert _texts(await _ask_all(client, questions, "edgecosine")) == expected
            answers = await _ask_all(client, questions, ALWAYS_DRAFTED)
            assert _texts(answers) == expected
            assert _acceptance(answers) > 0.5

            async with asyncio.TaskGroup() as group:
                asked = group.create_task(_ask_all(client, questions, ALWAYS_DRAFTED))
                for member in plan.drafters[:3]:
                    os.kill(cluster.pid(member.node_id), signal.SIGKILL)
            assert _texts(asked.result()) == expected

            await cluster.wait_until_linked(4)
            answers = await _ask_all(client, questions, ALWAYS_DRAFTED)
            assert _texts(answers) == expected
            assert _acceptance(answers) > 0.5

    run_patiently(scenario())


def test_text_is_exact_after_all_drafters_have_left(expected: list[str]) -> None:
    async def scenario() -> None:
        plan = _plan((zoo.drafter_names()[0], "ngram"), "exact-left")
        async with _running(plan) as (cluster, client):
            for member in plan.drafters:
                await cluster.stop(member.node_id)
            await cluster.wait_until_linked(0)
            assert _texts(await _ask_all(client, _questions(), ALWAYS_DRAFTED)) == expected

    run_patiently(scenario())


def test_text_is_the_same_with_other_threads_and_slots(expected: list[str]) -> None:
    async def scenario() -> None:
        plan = _plan(("ngram",), "exact-layout")
        options = ("--role", "target", "--model", zoo.TARGET, "--threads", "2", "--slots", "3")
        target = LocalNode("other", options)
        async with _running(dataclasses.replace(plan, target=target)) as (_, client):
            answers = await _ask_all(client, _questions()[:3], ALWAYS_DRAFTED)
            assert _texts(answers) == expected[:3]

    run_patiently(scenario())
