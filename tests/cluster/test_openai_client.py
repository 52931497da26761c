"""OpenAI's own client asks a real target with a drafter over HTTP, and MQTT asks beside it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.lab.load_generator import ask
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import local_plan
from edgecosine.protocol.api.request import Sampling
from tests.cluster.shared_cluster import running_cluster
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
    plan = local_plan(
        zoo.TARGET, zoo.drafter_names()[:1], cluster="http", ballast=1, target_cores="",
        drafter_cores="", broker=None, broker_port=free_port(), http=url,
    )  # fmt: skip
    with running_cluster(plan) as cluster:
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
