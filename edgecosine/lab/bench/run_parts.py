"""Measures the worth of each part of EdgeCoSine on the real model, with and without it.

Each repetition sends every policy fresh prompts, one at a time; the order of the policies is
reversed in every second repetition. The target keeps its statistics between them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from edgecosine import models
from edgecosine.balance.policy import PARTS
from edgecosine.client.client import Client
from edgecosine.lab.demo import ALONE
from edgecosine.lab.distill.fresh_prompts import fresh_prompts
from edgecosine.lab.figures import Figure, Keep, Notify, interval
from edgecosine.lab.harness import fresh_plan, running_cluster
from edgecosine.lab.load_generator import GREEDY, ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.protocol.api.request import Sampling

WHOLE = "edgecosine"
_SAMPLED = Sampling(temperature=0.8, seed=1)
_WARM_UP = 4

Prompts = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PartsSettings:
    """Number and length of requests, and cores of the nodes."""

    repeats: int
    prompts: int
    """Prompts for each policy and repetition; as many again at temperature 0.8."""
    max_tokens: int
    target_cores: str
    drafter_cores: str


def policies() -> tuple[str, ...]:
    """The policies: the whole, the whole without each part, and the target alone."""
    return (WHOLE, *(f"{WHOLE}-without-{part}" for part in PARTS), ALONE)


async def run_parts(settings: PartsSettings, notify: Notify, keep: Keep) -> list[dict[str, Any]]:
    """Tokens per second and acceptance for each repetition, policy and temperature; saved after
    every repetition."""
    num_runs = 2 * settings.repeats * len(policies())
    notify(f"the target writes {num_runs * settings.prompts + _WARM_UP} prompts")
    prompts = iter(fresh_prompts(models.DEFAULT_TARGET, num_runs * settings.prompts + _WARM_UP))
    plan = fresh_plan(
        "parts", models.DEFAULT_TARGET, models.drafters_of(models.DEFAULT_TARGET),
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
    )  # fmt: skip
    runs: list[dict[str, Any]] = []
    async with running_cluster(plan, notify) as cluster:
        await _answers(cluster.client, WHOLE, GREEDY, islice(prompts, _WARM_UP), settings)
        for repeat in range(settings.repeats):
            order = policies()[:: -1 if repeat % 2 else 1]
            for sampling in (GREEDY, _SAMPLED):
                for policy in order:
                    chosen = islice(prompts, settings.prompts)
                    answers = await _answers(cluster.client, policy, sampling, chosen, settings)
                    runs.append(_run(repeat, policy, sampling, answers))
            keep(parts_figures(runs), runs)
            notify(f"repetition {repeat + 1} of {settings.repeats}")
    return runs


async def _answers(
    client: Client, policy: str, sampling: Sampling, prompts: Prompts, settings: PartsSettings
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
    """The worth of each part as a ratio of speeds within a repetition, at both temperatures."""
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
            ratios = [speeds[WHOLE, repeat] / speeds[other, repeat] for repeat in repeats]
            figures[f"{name}{suffix}"] = interval(ratios, statistics.median)
    return figures
