"""Measures a committee of two specialists of the zoo: its answers on real nodes, compared with one
process that averages whole distributions, its speed with and without drafters, and the errors of
reconstructions."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.bench.committee.figures import (
    OURS,
    PLAIN,
    exactness_figures,
    speed_figures,
)
from edgecosine.lab.bench.committee.one_process import OneProcess
from edgecosine.lab.bench.committee.rows import TextRows, losses, reconstruction_errors
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.lab.load_generator import make_jobs, read_answer
from edgecosine.lab.measured_requests import LoadRequest
from edgecosine.lab.network.hosts import free_port
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.protocol.api.request import Request

WHOLE: Final = 4096
"""Lists as long as the zoo's vocabulary: every row is whole."""
LISTED: Final = (4, 16, WHOLE)
TEMPERATURES: Final = (0.0, 0.8, 1.0)
AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class CommitteeSettings:
    """Models and numbers of answers.

    models         the target's own model, and the other member's
    answers        answers for each list length and temperature
    speed_answers  answers of each of the two policies whose speeds are compared
    """

    models: tuple[str, str] = ("python", "legal")
    weights: tuple[float, float] = (0.5, 0.5)
    drafters: tuple[str, ...] = ("generalist", "manual", "home")
    answers: int = 56
    max_tokens: int = 32
    speed_answers: int = 12
    speed_tokens: int = 64
    ballast: int = 256
    texts_per_domain: int = 32
    every: int = 8


async def run_committee_bench(settings: CommitteeSettings, notify: Notify, keep: Keep) -> None:
    """Measure all figures; they are saved after each part."""
    quiet_transformers()
    runs: list[dict[str, Any]] = []
    figures: dict[str, Figure] = {}
    figures |= _rows(settings, runs, notify)
    keep(figures, runs)
    expected = await asyncio.to_thread(_expected, settings, notify)
    for listed in LISTED:
        async with _cluster(settings, listed, 1, notify) as client:
            for temperature in TEMPERATURES:
                runs += await _identical(client, settings, listed, temperature, expected)
                notify(f"k={listed} temperature={temperature}: {_share(runs, listed)}")
        figures |= exactness_figures(runs)
        keep(figures, runs)
    async with _cluster(settings, 16, settings.ballast, notify) as client:
        runs += await _speed(client, settings, notify)
    figures |= speed_figures(runs)
    keep(figures, runs)
    for name, figure in figures.items():
        notify(f"{name}: {figure}")


def _rows(
    settings: CommitteeSettings, runs: list[dict[str, Any]], notify: Notify
) -> dict[str, Figure]:
    texts = TextRows(settings.models, settings.models, settings.texts_per_domain)
    found = losses(texts, settings.weights, settings.models)
    errors = reconstruction_errors(texts, settings.weights, settings.every)
    runs += [*found, *errors]

    def total(name: str, records: Sequence[dict[str, Any]]) -> float:
        tokens = sum(record["tokens"] for record in records)
        return float(sum(record["tokens"] * record[name] for record in records) / tokens)

    best = min(settings.models, key=lambda name: total(name, found))
    for name in (*settings.models, "committee"):
        notify(f"held-out loss of {name}: {total(name, found):.3f} nats per token")
    gains = [record[best] - record["committee"] for record in found]
    worst = max(error["worst"] for error in errors)
    return {
        "loss_committee": counted(total("committee", found), "nats per token"),
        "loss_best_member": counted(total(best, found), "nats per token"),
        "loss_gain": interval(gains, lambda values: sum(values) / len(values), "nats per token"),
        "reconstruction_bias_over_bound": counted(worst, "ratio"),
    }


def _jobs(settings: CommitteeSettings, temperature: float) -> list[LoadRequest]:
    return make_jobs(
        settings.answers, offset=0, policy=OURS, temperature=temperature,
        max_tokens=settings.max_tokens,
    )  # fmt: skip


def _expected(settings: CommitteeSettings, notify: Notify) -> dict[tuple[float, int], str]:
    """The answers of one process, by temperature and number."""
    process = OneProcess(settings.models, settings.weights)
    found = {}
    for temperature in TEMPERATURES:
        for number, job in enumerate(_jobs(settings, temperature)):
            found[temperature, number] = process.text(job.prompt, job.sampling, job.max_tokens)
        notify(f"one process: {settings.answers} answers at temperature {temperature}")
    return found


@asynccontextmanager
async def _cluster(
    settings: CommitteeSettings, listed: int, ballast: int, notify: Notify
) -> AsyncIterator[Client]:
    own, other = settings.models
    weight = settings.weights[1]
    common = ("--threads", "1", "--ballast", str(ballast))
    plan = ClusterPlan(
        cluster=f"committee-{secrets.token_hex(3)}",
        target=LocalNode(
            "target",
            ("--role", "target", "--model", own, "--committee", f"{other}={weight:g}",
             "--committee-k", str(listed), *common),
        ),
        drafters=(
            LocalNode(other, ("--role", "member", "--model", other, *common)),
            *(
                LocalNode(f"drafter-{model}", ("--role", "drafter", "--model", model,
                                               "--threads", "1"))
                for model in settings.drafters
            ),
        ),
        broker_port=free_port(),
    )  # fmt: skip
    async with (
        LocalCluster(plan, notify) as cluster,
        Client(cluster.broker_url, plan.cluster) as client,
    ):
        yield client


async def _ask(client: Client, job: LoadRequest, policy: str) -> tuple[str, dict[str, Any]]:
    """The text of an answer, and the figures in its `edgecosine` field."""
    request = Request(
        "", secrets.token_hex(8), "completion", job.prompt, max_tokens=job.max_tokens,
        sampling=job.sampling, ignore_eos=True, policy=policy,
    )  # fmt: skip
    final = await read_answer(client, request, lambda _: True)
    if final is None:
        raise LabError("an answer was cancelled")
    return final.text, dict(final.body["edgecosine"])


async def _identical(
    client: Client,
    settings: CommitteeSettings,
    listed: int,
    temperature: float,
    expected: dict[tuple[float, int], str],
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    jobs = iter(list(enumerate(_jobs(settings, temperature))))

    async def work() -> None:
        for number, job in jobs:
            text, own = await _ask(client, job, OURS)
            found.append(
                {
                    "kind": "identical", "listed": listed, "temperature": temperature,
                    "number": number, "is_identical": text == expected[temperature, number],
                    "exact": own["exact"], "drawn": own["drawn"], "asked_back": own["asked_back"],
                    "dense_rows": own["dense_rows"],
                    "bytes_per_position": own["bytes_per_position"],
                }
            )  # fmt: skip

    async with asyncio.TaskGroup() as group:
        for worker in range(AT_ONCE):
            group.create_task(work(), name=f"worker {worker}")
    return found


def _share(runs: Sequence[dict[str, Any]], listed: int) -> str:
    mine = [run for run in runs if run["kind"] == "identical" and run["listed"] == listed]
    return f"{sum(run['is_identical'] for run in mine)} of {len(mine)} texts equal"


async def _speed(
    client: Client, settings: CommitteeSettings, notify: Notify
) -> list[dict[str, Any]]:
    """Runs of one answer at a time, with and without drafters, in alternating order."""
    jobs = make_jobs(
        settings.speed_answers + 2, offset=0, policy=OURS, temperature=0.0,
        max_tokens=settings.speed_tokens,
    )  # fmt: skip
    found = []
    for number, job in enumerate(jobs):
        for policy in (OURS, PLAIN) if number % 2 else (PLAIN, OURS):
            started = asyncio.get_running_loop().time()
            _, own = await _ask(client, replace(job, policy=policy), policy)
            elapsed_s = asyncio.get_running_loop().time() - started
            if number < 2:
                continue  # the planner has no measurements yet
            found.append(
                {
                    "kind": "speed", "policy": policy, "number": number,
                    "tokens_per_s": settings.speed_tokens / elapsed_s,
                    "verify_s": own["verify_s"], "slowest_member_s": own["slowest_member_s"],
                    "why": own["why"], "plan": own["plan"],
                }
            )  # fmt: skip
            notify(f"{policy}: {found[-1]['tokens_per_s']:.1f} tokens/s, {own['why']}")
    return found
