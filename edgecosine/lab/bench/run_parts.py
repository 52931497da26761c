"""What each part of EdgeCoSine is worth on the real model: with it and without it, fresh prompts.

Each repetition asks every policy prompts of its own, one at a time, and takes the policies in
turns, every second time backwards. What the target has learned is not forgotten between them.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from edgecosine import models
from edgecosine.balance.policy import PARTS
from edgecosine.client.client import Client
from edgecosine.lab.demo import ALONE
from edgecosine.lab.distill.fresh_prompts import fresh_prompts
from edgecosine.lab.figures import Figure, Keep, interval
from edgecosine.lab.measured_requests import GREEDY, Asked, ask
from edgecosine.lab.network.hosts import free_port
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import local_plan
from edgecosine.protocol.api.request import Sampling

WHOLE = "edgecosine"
_SAMPLED = Sampling(temperature=0.8, seed=1)
_WARM_UP = 4

Say = Callable[[str], None]
Prompts = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PartsSettings:
    """How much to ask, and where the nodes run."""

    repeats: int
    prompts: int
    """For each policy and repetition; as many again at temperature 0.8."""
    max_tokens: int
    target_cores: str
    drafter_cores: str


def policies() -> tuple[str, ...]:
    """What is compared: the whole, the whole less one part each, and the target alone."""
    return (WHOLE, *(f"{WHOLE}-without-{part}" for part in PARTS), ALONE)


async def run_parts(settings: PartsSettings, say: Say, keep: Keep) -> list[dict[str, Any]]:
    """The runs: of each repetition, policy and temperature, tokens per second and acceptance. They
    are kept after every repetition."""
    num_runs = 2 * settings.repeats * len(policies())
    say(f"the target writes {num_runs * settings.prompts + _WARM_UP} prompts")
    prompts = iter(fresh_prompts(models.DEFAULT_TARGET, num_runs * settings.prompts + _WARM_UP))
    plan = local_plan(
        models.DEFAULT_TARGET, models.drafters_of(models.DEFAULT_TARGET),
        cluster=f"parts-{secrets.token_hex(3)}", ballast=1, target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores, broker=None, broker_port=free_port(),
    )  # fmt: skip
    runs: list[dict[str, Any]] = []
    async with (
        LocalCluster(plan, say) as cluster,
        Client(cluster.broker_url, plan.cluster) as asker,
    ):
        await _answers(asker, WHOLE, GREEDY, islice(prompts, _WARM_UP), settings)
        for repeat in range(settings.repeats):
            order = policies()[:: -1 if repeat % 2 else 1]
            for sampling in (GREEDY, _SAMPLED):
                for policy in order:
                    chosen = islice(prompts, settings.prompts)
                    answers = await _answers(asker, policy, sampling, chosen, settings)
                    runs.append(_run(repeat, policy, sampling, answers))
            keep(parts_figures(runs), runs)
            say(f"repetition {repeat + 1} of {settings.repeats}")
    return runs


async def _answers(
    client: Client, policy: str, sampling: Sampling, prompts: Prompts, settings: PartsSettings
) -> list[Asked]:
    return [
        await ask(
            client, prompt, domain=domain, policy=policy, max_tokens=settings.max_tokens,
            sampling=sampling, is_chat=True,
        )
        for domain, prompt in prompts
    ]  # fmt: skip


def _run(repeat: int, policy: str, sampling: Sampling, answers: Sequence[Asked]) -> dict[str, Any]:
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
    """What each part is worth, as a ratio of speeds within a repetition, at both temperatures."""
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
