"""The lab's one driver of requests: sends them, reads the answers and measures what a client sees.

A closed loop keeps a fixed number of requests running; an open loop sends each at its arrival time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.lab.measured_requests import MAX_TOKENS, Load, LoadRequest, MeasuredAnswer
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import ChatMessage, Request, Sampling
from edgecosine.protocol.api.result import Delta

GREEDY = Sampling()

Item = TypeVar("Item")
OnDelta = Callable[[Delta], bool]
"""Receives each part of a stream; returns False to cancel the request."""


def prompts_in_turn() -> list[str]:
    """All held-out prompts of the zoo; the domains take turns."""
    return [text for texts in zip(*zoo.prompts().values(), strict=False) for text in texts]


def make_jobs(
    count: int,
    *,
    offset: int,
    policy: str,
    temperature: float,
    max_tokens: int = MAX_TOKENS,
    trace: bool = False,
    prompts: Sequence[tuple[str, str]] = (),
) -> list[LoadRequest]:
    """Requests for `count` prompts, from number `offset` on; the first follows after the last.

    `prompts` are pairs (domain, text), by default those of the zoo, whose domains take turns. The
    same number has the same prompt and the same seed under every policy.
    """
    chosen = prompts or _zoo_prompts()
    jobs = []
    for number in range(offset, offset + count):
        domain, prompt = chosen[number % len(chosen)]
        sampling = Sampling(temperature=temperature, seed=number)
        jobs.append(LoadRequest(domain, prompt, policy, sampling, max_tokens, trace))
    return jobs


def _zoo_prompts() -> list[tuple[str, str]]:
    columns = [[(domain, text) for text in texts] for domain, texts in zoo.prompts().items()]
    longest = max(map(len, columns))
    return [column[row % len(column)] for row in range(longest) for column in columns]


async def read_answer(
    client: Client, request: Request, on_delta: OnDelta, *, cancel_after_s: float | None = None
) -> FinalMessage | None:
    """Send one request and read its answer to the end; None when it was cancelled on the way.

    Raises RequestError and BrokerLost.
    """
    final: FinalMessage | None = None
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(cancel_after_s),
            contextlib.aclosing(client.ask(request)) as steps,
        ):
            async for step in steps:
                if not isinstance(step, Delta):
                    final = step
                elif not on_delta(step):
                    return None
    return final


async def ask(
    client: Client,
    prompt: str,
    *,
    domain: str,
    policy: str,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    on_text: Callable[[str], None] | None = None,
    trace: bool = False,
    is_chat: bool = False,
) -> MeasuredAnswer:
    """Request exactly `max_tokens` tokens and measure the whole answer; `trace` adds its rounds.

    With `is_chat` the prompt is a user's turn, and the model may end its answer earlier.

    Raises RequestError and BrokerLost.
    """
    request = Request(
        client_id="",
        request_id=secrets.token_hex(8),
        kind="chat" if is_chat else "completion",
        prompt=(ChatMessage("user", prompt),) if is_chat else prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        ignore_eos=not is_chat,
        stream=on_text is not None,
        policy=policy,
        trace=trace,
    )
    started = time.perf_counter()
    first_text_s: float | None = None

    def on_delta(delta: Delta) -> bool:
        nonlocal first_text_s
        if first_text_s is None:
            first_text_s = time.perf_counter() - started
        if on_text is not None:
            on_text(delta.text)
        return True

    final = await read_answer(client, request, on_delta)
    elapsed_s = time.perf_counter() - started
    assert final is not None, "the client yields a final message or raises"
    own, figures = final.body["edgecosine"], final.body["metrics"]["speculative_decoding"]
    return MeasuredAnswer(
        domain=domain,
        policy=policy,
        text=final.text,
        num_tokens=final.body["usage"]["completion_tokens"],
        elapsed_s=elapsed_s,
        first_text_s=first_text_s,
        queue_s=own["queue_s"],
        prefill_s=own["prefill_s"],
        acceptance_histogram=tuple(figures["acceptance_histogram"]),
        drafters=own["drafters"],
        plan=own["plan"],
        num_speculative_rounds=own["speculative_rounds"],
        num_ahead_rounds=own["ahead_rounds"],
        rounds=tuple(own.get("rounds", ())),
        began_s=own.get("began_s", 0.0),
    )


async def run_workers(
    items: Iterable[Item], concurrency: int, work: Callable[[Item, int], Awaitable[None]]
) -> None:
    """Let `concurrency` workers take items in turn; `work` gets an item and its worker's number.

    Raises what `work` raises, in a group.
    """
    waiting = iter(items)

    async def run(worker: int) -> None:
        for item in waiting:
            await work(item, worker)

    async with asyncio.TaskGroup() as group:
        for worker in range(concurrency):
            group.create_task(run(worker), name=f"worker {worker}")


async def closed_loop(client: Client, jobs: Sequence[LoadRequest], concurrency: int) -> Load:
    """Keep `concurrency` requests running until there are none left.

    Raises BrokerLost.
    """
    run = _Run(client)

    async def work(job: tuple[int, LoadRequest], _: int) -> None:
        await run.ask(*job)

    await run_workers(enumerate(jobs), concurrency, work)
    return run.load()


async def open_loop(
    client: Client, jobs: Sequence[LoadRequest], arrivals_s: Sequence[float]
) -> Load:
    """Send a request at each arrival time, in seconds from now, without waiting for earlier ones.

    When all jobs have been sent, the first one follows again.

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
    """Collects the answers and refusals of one run. Refused requests are not sent again."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answers: dict[int, MeasuredAnswer] = {}
        self._refused: list[RequestError] = []
        self._started = time.perf_counter()

    async def ask(self, number: int, job: LoadRequest) -> None:
        try:
            self._answers[number] = await ask(
                self._client,
                job.prompt,
                domain=job.domain,
                policy=job.policy,
                max_tokens=job.max_tokens,
                sampling=job.sampling,
                # Every answer is streamed, so that the time of its first text is measured.
                on_text=lambda _: None,
                trace=job.trace,
                is_chat=job.is_chat,
            )
        except RequestError as error:
            self._refused.append(error)

    def load(self) -> Load:
        elapsed_s = time.perf_counter() - self._started
        measured = tuple(self._answers[number] for number in sorted(self._answers))
        return Load(measured, tuple(self._refused), elapsed_s)
