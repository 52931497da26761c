"""The real chat model with its own drafter: the text is the model's, and drafts are accepted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from edgecosine import models, zoo
from edgecosine.cli.up import split_cores
from edgecosine.client.client import Client
from edgecosine.errors import ModelUnavailable
from edgecosine.lab.demo import ALONE, WITH_DRAFTERS, DemoSettings, run_demo
from edgecosine.lab.demo_models import Scene
from edgecosine.lab.distill.prompts import held_out
from edgecosine.lab.load_generator import ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.local.cluster_plan import local_plan
from edgecosine.protocol.api.request import Sampling
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, run_patiently

pytestmark = pytest.mark.timeout(120)

GENERALIST = f"{models.DEFAULT_TARGET}/generalist"


def test_text_of_the_real_model_is_exact_and_drafts_are_accepted() -> None:
    try:
        models.obtain(models.DEFAULT_TARGET)
    except ModelUnavailable as error:
        pytest.skip(str(error))
    target_cores, drafter_cores = split_cores()
    plan = local_plan(
        models.DEFAULT_TARGET, [GENERALIST], cluster="real", ballast=1, target_cores=target_cores,
        drafter_cores=drafter_cores, broker=None, broker_port=free_port(),
    )  # fmt: skip

    async def scenario() -> list[list[MeasuredAnswer]]:
        async with (
            forked_cluster(plan) as cluster,
            Client(cluster.broker_url, plan.cluster) as client,
        ):
            return [
                [await _ask(client, prompt, policy, sampling) for policy in (ALONE, WITH_DRAFTERS)]
                for sampling, prompt in (
                    (Sampling(), held_out()["code"][0]),
                    (Sampling(temperature=0.8, seed=3), held_out()["facts"][0]),
                )
            ]

    answers = run_patiently(scenario())
    for alone, together in answers:
        assert together.text == alone.text
        assert alone.num_tokens > 8
    assert sum(together.num_accepted for _, together in answers) > 0


async def _ask(client: Client, prompt: str, policy: str, sampling: Sampling) -> MeasuredAnswer:
    return await ask(
        client, prompt, domain="", policy=policy, max_tokens=24, sampling=sampling, is_chat=True
    )


def test_demo_shows_questions_answers_and_figures(tmp_path: Path) -> None:
    prompts = {domain: texts[:1] for domain, texts in list(zoo.prompts().items())[:2]}
    scene = Scene(zoo.TARGET, ("python", "ngram"), prompts, is_chat=True)
    target_cores, drafter_cores = split_cores()
    settings = DemoSettings(scene, 1, 8, target_cores, drafter_cores)
    console = Console(file=io.StringIO(), width=100)

    async def demo() -> bool:
        return await run_demo(settings, console, tmp_path / "demo.json")

    assert run_patiently(demo())
    shown = console.file.getvalue()
    for domain, texts in prompts.items():
        assert f"{domain}, prompt 1" in shown
        assert texts[0].split()[0] in shown
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["figures"].keys() == {
        "speedup_median", "speedup_worst_domain", "speedup_sampled", "speedup_without_drafters",
        "identical_share", "acceptance_length_mean", "time_to_first_token_s",
    }  # fmt: skip
    assert record["figures"]["identical_share"]["value"] == 1.0
    assert len(record["runs"]) == 2 * (2 + 2 + 2)
    assert record["environment"]["cpu_units"] is not None
