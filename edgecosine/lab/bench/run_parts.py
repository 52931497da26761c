"""Measures the gain of each part of EdgeCoSine on the real model, by runs with and without it.

Each repetition has a fresh cluster, on which all policies run in balanced order, one request at a
time. Every run has prompts of its own, and begins with a warm-up on one more prompt.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from edgecosine import models
from edgecosine.balance.policy import PARTS
from edgecosine.client.client import Client
from edgecosine.engine.loading.gguf_weights import read_gguf_tokenizer
from edgecosine.engine.loading.sources import locate
from edgecosine.lab.demo import ALONE
from edgecosine.lab.distill.fresh_prompts import write_prompts
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.figures import Figure, Keep, Notify
from edgecosine.lab.harness import fresh_plan, running_cluster
from edgecosine.lab.load_generator import GREEDY, ask
from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.lab.paired_runs import balanced_order, ratio_figure
from edgecosine.protocol.api.request import Sampling

WHOLE = "edgecosine"
_SAMPLED = Sampling(temperature=0.8, seed=1)
_FIRST_WARM_UP, _WARM_UP = 4, 1
"""Warm-up prompts before the first run of a repetition, by EdgeCoSine with all parts, and before
each run."""

Prompts = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PartsSettings:
    """Number and length of requests, and cores of the nodes."""

    repeats: int
    prompts: int
    """Prompts for each policy and repetition, at temperature 0 and again at 0.8."""

    @property
    def num_prompts(self) -> int:
        """Prompts of all runs and warm-ups."""
        runs = 2 * len(policies()) * (self.prompts + _WARM_UP)
        return self.repeats * (_FIRST_WARM_UP + runs)

    max_tokens: int
    target_cores: str
    drafter_cores: str


def policies() -> tuple[str, ...]:
    """The policies: EdgeCoSine, EdgeCoSine without each part, and the target alone."""
    return (WHOLE, *(f"{WHOLE}-without-{part}" for part in PARTS), ALONE)


async def run_parts(settings: PartsSettings, notify: Notify, keep: Keep) -> list[dict[str, Any]]:
    """Measure all policies; returns a record for each repetition, policy and temperature, with
    tokens per second and acceptance. Records are saved after every repetition."""
    quiet_transformers()
    prompts = iter(await write_prompts(models.DEFAULT_TARGET, settings.num_prompts, notify))
    plan = fresh_plan(
        "parts", models.DEFAULT_TARGET, models.drafters_of(models.DEFAULT_TARGET),
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
    )  # fmt: skip
    looping = _looping_share(models.DEFAULT_TARGET)
    runs: list[dict[str, Any]] = []
    for repeat in range(settings.repeats):
        async with running_cluster(plan, notify) as cluster:
            ask_all = partial(_answers, cluster.client, settings)
            await ask_all(WHOLE, GREEDY, islice(prompts, _FIRST_WARM_UP))
            for sampling in (GREEDY, _SAMPLED):
                for policy in balanced_order(policies(), repeat):
                    await ask_all(policy, sampling, islice(prompts, _WARM_UP))
                    answers = await ask_all(policy, sampling, islice(prompts, settings.prompts))
                    runs.append({**_run(repeat, policy, sampling, answers), **looping(answers)})
        keep(parts_figures(runs), runs)
        notify(f"repetition {repeat + 1} of {settings.repeats}")
    return runs


def _looping_share(model: str) -> Callable[[Sequence[MeasuredAnswer]], dict[str, float]]:
    gguf = locate(model).gguf
    assert gguf is not None, "the packaged model is a GGUF file"
    tokenizer = read_gguf_tokenizer(gguf)

    def share(answers: Sequence[MeasuredAnswer]) -> dict[str, float]:
        texts = [tokenizer.encode(answer.text) for answer in answers if answer.text]
        return {"looping_share": statistics.fmean(map(loop_share, texts)) if texts else 0.0}

    return share


async def _answers(
    client: Client, settings: PartsSettings, policy: str, sampling: Sampling, prompts: Prompts
) -> list[MeasuredAnswer]:
    return [
        await ask(
            client, prompt, domain=domain, policy=policy, max_tokens=settings.max_tokens,
            sampling=sampling, is_chat=True,
        )
        for domain, prompt in prompts
    ]  # fmt: skip


def _run(
    repeat: int, policy: str, sampling: Sampling, answers: Sequence[MeasuredAnswer]
) -> dict[str, Any]:
    tokens = sum(answer.num_tokens for answer in answers)
    return {
        "repeat": repeat,
        "policy": policy,
        "temperature": sampling.temperature,
        "tokens": tokens,
        "tokens_per_s": tokens / sum(answer.elapsed_s for answer in answers),
        "accepted_per_round": sum(answer.num_accepted for answer in answers)
        / max(1, sum(answer.num_rounds for answer in answers)),
    }


def parts_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The gain of each part, as the ratio of speeds with and without it within a repetition, at
    both temperatures."""
    figures: dict[str, Figure] = {}
    for temperature, suffix in ((0.0, ""), (0.8, "_sampled")):
        speeds = {
            (run["policy"], run["repeat"]): run["tokens_per_s"]
            for run in runs
            if run["temperature"] == temperature
        }
        repeats = sorted({repeat for _, repeat in speeds})
        others = {f"worth_of_{part}": f"{WHOLE}-without-{part}" for part in PARTS}
        for name, other in {"over_target_alone": ALONE, **others}.items():
            ours, theirs = ([speeds[one, r] for r in repeats] for one in (WHOLE, other))
            figures[f"{name}{suffix}"] = ratio_figure(ours, theirs)
    return figures
