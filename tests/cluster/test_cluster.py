"""Whole clusters of real processes: the target's own text, and speculation really happens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass

import pytest

from edgecosine import zoo
from edgecosine.cli.up import split_cores
from edgecosine.client.client import Client
from edgecosine.lab.measured_requests import Asked, ask
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode, local_plan
from edgecosine.protocol.api.request import Sampling
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(300)

MAX_TOKENS = 32
SAMPLINGS = (Sampling(), Sampling(temperature=0.8, seed=7), Sampling(1.0, top_p=0.9, seed=2**63))


@dataclass(frozen=True)
class Question:
    prompt: str
    sampling: Sampling


def _questions() -> list[Question]:
    prompts = [prompt for texts in zoo.prompts().values() for prompt in texts[-1:]]
    return [Question(prompt, sampling) for prompt in prompts for sampling in SAMPLINGS]


def _plan(drafters: tuple[str, ...], cluster: str) -> ClusterPlan:
    """With ballast and cores apart, so that speculation pays, as with a real target."""
    target_cores, drafter_cores = split_cores()
    return local_plan(
        zoo.TARGET, drafters, cluster=cluster, ballast=16, target_cores=target_cores,
        drafter_cores=drafter_cores,
        broker=None, broker_port=free_port(),
    )  # fmt: skip


async def _ask_all(client: Client, questions: list[Question], policy: str) -> list[Asked]:
    """All questions at once."""

    def one(question: Question) -> Coroutine[None, None, Asked]:
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


def _texts(answers: list[Asked]) -> list[str]:
    return [answer.text for answer in answers]


async def _acceptance(client: Client, questions: list[Question]) -> float:
    """Mean acceptance length of one request at a time."""
    answers = []
    for question in questions[::2]:
        answers += await _ask_all(client, [question], "edgecosine")
    return sum(a.num_accepted for a in answers) / sum(a.num_rounds for a in answers)


def test_text_is_exact_while_drafters_come_and_go_and_on_another_layout() -> None:
    async def story() -> None:
        questions = _questions()
        plan = _plan(zoo.drafter_names()[:4], "exact-one")
        async with (
            LocalCluster(plan, print) as cluster,
            Client(cluster.broker_url, plan.cluster) as client,
        ):
            truth = _texts(await _ask_all(client, questions, "target-alone"))
            assert _texts(await _ask_all(client, questions, "edgecosine")) == truth
            assert await _acceptance(client, questions) > 0.5

            async with asyncio.TaskGroup() as group:
                asked = group.create_task(_ask_all(client, questions, "edgecosine"))
                for member in plan.drafters[:3]:
                    os.kill(cluster.pid(member.node_id), signal.SIGKILL)
            assert _texts(asked.result()) == truth

            await cluster.wait_until_linked(4)
            assert _texts(await _ask_all(client, questions, "edgecosine")) == truth
            assert await _acceptance(client, questions) > 0.5

            for member in plan.drafters:
                await cluster.stop(member.node_id)
            await cluster.wait_until_linked(0)
            assert _texts(await _ask_all(client, questions, "edgecosine")) == truth

        other = _plan(("ngram",), "exact-two")
        other = ClusterPlan(
            cluster=other.cluster,
            target=LocalNode("other", (*other.target.options, "--threads", "2", "--slots", "3")),
            drafters=other.drafters,
            broker_port=other.broker_port,
        )
        async with (
            LocalCluster(other, print) as cluster,
            Client(cluster.broker_url, other.cluster) as client,
        ):
            assert _texts(await _ask_all(client, questions, "edgecosine")) == truth

    run_patiently(story())
