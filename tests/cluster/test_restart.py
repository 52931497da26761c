"""SIGTERM lets a real node finish its requests, a second one does not, and a rolling restart under
load loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections import Counter

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

MAX_TOKENS = 16
LONG = 1000


def _plan(*target_options: str, drafters: tuple[str, ...] = ()) -> ClusterPlan:
    target = ("--role", "target", "--model", zoo.TARGET, "--ballast", "4", "--threads", "1")
    return ClusterPlan(
        cluster="restart",
        target=LocalNode("t", (*target, *target_options)),
        drafters=tuple(
            LocalNode(f"d{number}", ("--role", "drafter", "--model", model, "--threads", "1"))
            for number, model in enumerate(drafters)
        ),
        broker_port=free_port(),
    )


def _request(prompt: str, max_tokens: int = MAX_TOKENS, *, stream: bool = False) -> Request:
    return Request(
        "", secrets.token_hex(8), "completion", prompt, max_tokens=max_tokens, ignore_eos=True,
        stream=stream, policy="target-alone",  # texts that repeat themselves would end too soon
    )  # fmt: skip


async def _text(client: Client, prompt: str, max_tokens: int = MAX_TOKENS) -> str:
    async with contextlib.aclosing(client.ask(_request(prompt, max_tokens))) as steps:
        async for step in steps:
            if isinstance(step, FinalMessage):
                return step.text
    raise AssertionError("no final message")


async def _ask_on(
    client: Client, prompts: list[str], answers: list[tuple[str, str]], codes: Counter[str],
    stop: asyncio.Event,
) -> None:  # fmt: skip
    """Send one request after the other; a refused request is sent again."""
    number = 0
    while not stop.is_set():
        prompt = prompts[number % len(prompts)]
        try:
            answers.append((prompt, await _text(client, prompt)))
            number += 1
        except RequestError as refusal:
            codes[refusal.code] += 1
            await asyncio.sleep(0.2)


async def _restarted(cluster: LocalCluster, client: Client, node_id: str) -> None:
    """SIGTERM one node and wait until its next process is ready."""
    before = (await client.nodes())[node_id].status
    assert before is not None
    os.kill(cluster.pid(node_id), signal.SIGTERM)
    while True:
        view = (await client.nodes()).get(node_id)
        now = view.status if view else None
        if now is not None and now.session != before.session and now.state == "ready":
            return
        await client.changed()


def test_rolling_restart_under_load_loses_nothing() -> None:
    async def scenario() -> None:
        plan = _plan(drafters=(zoo.drafter_names()[0], "ngram"))
        prompts = [texts[-1] for texts in zoo.prompts().values()]
        answers: list[tuple[str, str]] = []
        codes: Counter[str] = Counter()
        async with (
            forked_cluster(plan) as cluster,
            Client(
                cluster.broker_url, plan.cluster, patience_s=120, retry_patience_s=120
            ) as client,
        ):
            truth = {prompt: await _text(client, prompt) for prompt in prompts}
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for asker in range(3):
                    rotated = prompts[asker:] + prompts[:asker]
                    group.create_task(_ask_on(client, rotated, answers, codes, stop))
                for node_id in ("d0", "t", "d1"):
                    await _restarted(cluster, client, node_id)
                    await cluster.wait_until_linked(2)
                    truth_again = [await _text(client, prompt) for prompt in prompts]
                    assert truth_again == list(truth.values())
                stop.set()
        assert {text == truth[prompt] for prompt, text in answers} == {True}
        # Only new requests are refused, and only while no target is online.
        assert set(codes) <= {"gateway_offline"}

    run_patiently(scenario())


@pytest.mark.parametrize("is_urged", [True, False], ids=["second SIGTERM", "drain timeout"])
def test_second_signal_or_drain_timeout_ends_running_requests(
    is_urged: bool,
) -> None:
    async def scenario() -> None:
        timeout = ("--drain-timeout", "60" if is_urged else "0.5")
        plan = _plan(*timeout, "--context", "2048", "--no-journal")
        async with (
            forked_cluster(plan) as cluster,
            Client(cluster.broker_url, plan.cluster, patience_s=10) as client,
        ):
            steps = client.ask(_request("def main():", LONG, stream=True))
            assert isinstance(await anext(steps), Delta)
            pid = cluster.pid("t")
            os.kill(pid, signal.SIGTERM)
            while (status := (await client.nodes())["t"].status) is None or (
                status.state != "draining"
            ):
                await client.changed()
            if is_urged:
                os.kill(pid, signal.SIGTERM)
            with pytest.raises(RequestError) as ending:
                async for _ in steps:
                    pass
            assert ending.value.code == "shutting_down"

    run_patiently(scenario())


def test_request_cut_by_the_drain_timeout_is_resumed_after_the_restart() -> None:
    async def scenario() -> None:
        plan = _plan("--drain-timeout", "0.5", "--context", "2048")
        async with (
            forked_cluster(plan) as cluster,
            Client(cluster.broker_url, plan.cluster, patience_s=120) as client,
        ):
            texts: list[str] = []
            async for step in client.ask(_request("def main():", LONG, stream=True)):
                match step:
                    case Delta(_, text):
                        if not texts:
                            os.kill(cluster.pid("t"), signal.SIGTERM)
                        texts.append(text)
                    case FinalMessage():
                        assert step.text == "".join(texts)
                        assert step.body["usage"]["completion_tokens"] == LONG
            log = (cluster.logs / "t.log").read_text()
            assert "request left to the next start" in log
            assert "request resumed" in log
            again = await _text(client, "def main():", LONG)
        assert again == "".join(texts)

    run_patiently(scenario())
