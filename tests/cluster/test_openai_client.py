"""OpenAI's own client asks a real target with a drafter over HTTP, and MQTT asks beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.lab.load_generator import ask
from edgecosine.local.cluster import LocalCluster
from edgecosine.protocol.api.request import Sampling
from tests.cluster.shared_cluster import http_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

PROMPT = next(iter(zoo.prompts().values()))[0]
ALWAYS_DRAFTED = {"policy": "specinfer"}
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def url() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def cluster(url: str) -> Iterator[LocalCluster]:
    """A target with HTTP and one drafter."""
    with http_cluster("http", url) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=7)])
def test_text_over_http_is_that_of_mqtt_with_accepted_drafts(
    cluster: LocalCluster, client: openai.OpenAI, sampling: Sampling
) -> None:
    async def by_mqtt() -> str:
        async with Client(cluster.broker_url, "http") as mqtt:
            answer = await ask(
                mqtt, PROMPT, domain="", policy="target-alone", max_tokens=NUM_TOKENS,
                sampling=sampling, on_text=lambda _: None,
            )  # fmt: skip
        return answer.text

    asked = {
        "model": zoo.TARGET, "prompt": PROMPT, "max_tokens": NUM_TOKENS,
        "temperature": sampling.temperature, "seed": sampling.seed, "extra_body": ALWAYS_DRAFTED,
    }  # fmt: skip
    whole = client.completions.create(**asked)
    parts = list(client.completions.create(**asked, stream=True))
    assert whole.choices[0].text == run_patiently(by_mqtt())
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == NUM_TOKENS
    assert whole.model_extra is not None
    speculation = whole.model_extra["metrics"]["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] > 0


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-99")


def test_several_prompts_are_several_choices_of_one_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": zoo.TARGET, "max_tokens": 6, "n": 2, "seed": 3}
    prompts = [PROMPT, "def main():", "The ls command"]
    whole = client.completions.create(**asked, prompt=prompts, temperature=0.7)
    alone = [client.completions.create(**asked, prompt=p, temperature=0.7) for p in prompts]
    expected = [choice.text for answer in alone for choice in answer.choices]
    assert [choice.text for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [""] * 6
    for chunk in client.completions.create(**asked, prompt=prompts, temperature=0.7, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_prompts_are_scored_as_harnesses_for_evaluation_ask(
    client: openai.OpenAI, url: str
) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"http://{url}{path}", json=body, trust_env=False).json()

    context = post("/tokenize", {"prompt": PROMPT, "add_special_tokens": False})["tokens"]
    assert post("/detokenize", {"tokens": context})["prompt"] == PROMPT
    facts = httpx.get(f"http://{url}/tokenizer_info", trust_env=False).json()
    assert facts["eos_token"] == "<|endoftext|>"
    asked: dict[str, Any] = {"model": zoo.TARGET, "temperature": 0, "logprobs": 1, "seed": 1234}
    said = client.completions.create(**asked, prompt=context, max_tokens=NUM_TOKENS).choices[0]
    assert said.logprobs is not None
    continuation = post("/tokenize", {"prompt": said.text, "add_special_tokens": False})["tokens"]
    prompts = [[*context, *continuation], [*context, *reversed(continuation)]]
    scored = client.completions.create(**asked, prompt=prompts, max_tokens=1, echo=True)
    for choice, prompt in zip(scored.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert len(logprobs.token_logprobs) == len(prompt) + 1
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        own, top = (
            each[len(context) : -1] for each in (logprobs.token_logprobs, logprobs.top_logprobs)
        )
        is_greedy = all(one == max(best.values()) for one, best in zip(own, top, strict=True))
        assert is_greedy == (prompt == prompts[0])
        if is_greedy:
            assert own == said.logprobs.token_logprobs


def test_named_request_outlives_a_kill_of_the_target(
    cluster: LocalCluster, client: openai.OpenAI
) -> None:
    asked: dict[str, Any] = {
        "model": zoo.TARGET, "prompt": PROMPT, "max_tokens": 200, "temperature": 0.9, "seed": 5,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    expected = client.completions.create(**asked).choices[0].text
    target = next(node_id for node_id in cluster.pids if node_id.startswith("target"))
    named = {**asked, "stream": True, "extra_headers": {"Idempotency-Key": "outlives"}}
    stream = client.completions.create(**named)
    assert expected.startswith(next(stream).choices[0].text)
    os.kill(cluster.pid(target), signal.SIGKILL)
    with pytest.raises(openai.APIConnectionError):
        list(stream)

    async def num_resumed() -> int:
        async with Client(cluster.broker_url, "http") as mqtt:
            while True:
                # A target that still loads its model has no counters.
                counters = (await mqtt.nodes())[target].state.get("counters", {})
                if counters.get("resumed"):
                    return int(counters["resumed"])
                await mqtt.changed()

    assert run_patiently(num_resumed()) == 1
    texts = [chunk.choices[0].text for chunk in client.completions.create(**named)]
    assert "".join(texts) == expected
