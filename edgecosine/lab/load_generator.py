"""Load on a cluster: closed loop, where so many requests are always at work, and open loop, where
they come when they come.

Requests take turns through all domains. What the cluster refuses is counted, not asked again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.lab.measured_requests import Asked, ask
from edgecosine.protocol.api.request import Sampling

MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request to make: a prompt of 48 tokens, and exactly so many to answer."""

    domain: str
    prompt: str
    policy: str
    sampling: Sampling
    max_tokens: int = MAX_TOKENS
    trace: bool = False
    """Whether the answer tells the course of its rounds."""
    is_chat: bool = False
    """The prompt is a user's turn of any length; the model may end its answer early."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a run: answers in the order of their jobs, and refusals."""

    asked: tuple[Asked, ...]
    refused: tuple[RequestError, ...]
    elapsed_s: float
    """From the start of the run to the last answer."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(a.num_tokens for a in self.asked)

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the whole run."""
        return self.num_tokens / self.elapsed_s

    @property
    def acceptance_length(self) -> float:
        """Mean accepted draft tokens a round; 0 when there was no round."""
        rounds = sum(a.num_rounds for a in self.asked)
        return sum(a.num_accepted for a in self.asked) / max(1, rounds)

    @property
    def ahead_hit_rate(self) -> float | None:
        """Share of the rounds with drafters whose drafts had been made ahead; None without any."""
        planned = sum(a.num_speculative_rounds for a in self.asked)
        return sum(a.num_ahead_rounds for a in self.asked) / planned if planned else None


def make_jobs(
    count: int,
    *,
    offset: int,
    policy: str,
    temperature: float,
    max_tokens: int = MAX_TOKENS,
    trace: bool = False,
) -> list[LoadRequest]:
    """Held-out prompts of the zoo, domains in turn, from number `offset` on.

    The same number gets the same prompt and the same seed, whatever the policy.
    """
    by_domain = list(zoo.prompts().items())
    jobs = []
    for number in range(offset, offset + count):
        domain, prompts = by_domain[number % len(by_domain)]
        prompt = prompts[number // len(by_domain) % len(prompts)]
        sampling = Sampling(temperature=temperature, seed=number)
        jobs.append(LoadRequest(domain, prompt, policy, sampling, max_tokens, trace))
    return jobs


async def closed_loop(client: Client, jobs: Sequence[LoadRequest], concurrency: int) -> Load:
    """So many askers, each with one request at work until there are none left.

    Raises BrokerLost.
    """
    run = _Run(client)
    waiting = iter(enumerate(jobs))

    async def ask_in_turn() -> None:
        for number, job in waiting:
            await run.ask(number, job)

    async with asyncio.TaskGroup() as group:
        for asker in range(concurrency):
            group.create_task(ask_in_turn(), name=f"asker {asker}")
    return run.load()


async def open_loop(
    client: Client, jobs: Sequence[LoadRequest], arrivals_s: Sequence[float]
) -> Load:
    """A request at each arrival, jobs over and over in turn, whether others are at work or not.

    Raises BrokerLost.
    """
    run, loop = _Run(client), asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, (arrival_s, job) in enumerate(
            zip(arrivals_s, itertools.cycle(jobs), strict=False)
        ):
            await asyncio.sleep(max(0.0, started + arrival_s - loop.time()))
            group.create_task(run.ask(number, job), name=f"request {number}")
    return run.load()


class _Run:
    """Answers and refusals as they come."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked: dict[int, Asked] = {}
        self._refused: list[RequestError] = []
        self._started = time.perf_counter()

    async def ask(self, number: int, job: LoadRequest) -> None:
        try:
            self._asked[number] = await ask(
                self._client,
                job.prompt,
                domain=job.domain,
                policy=job.policy,
                max_tokens=job.max_tokens,
                sampling=job.sampling,
                on_text=_ignore,
                trace=job.trace,
                is_chat=job.is_chat,
            )
        except RequestError as error:
            self._refused.append(error)

    def load(self) -> Load:
        elapsed_s = time.perf_counter() - self._started
        asked = tuple(self._asked[number] for number in sorted(self._asked))
        return Load(asked, tuple(self._refused), elapsed_s)


def _ignore(_: str) -> None:
    """Every answer is streamed, so that its first text has a time."""
