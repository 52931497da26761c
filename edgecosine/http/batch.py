"""Completions of several prompts in one call: a request for each, joined in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from edgecosine.errors import root_of
from edgecosine.http.backend import Backend, Call, Step
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.json_fields import invalid

MAX_PROMPTS: Final = 256
_AT_ONCE: Final = 8
"""Prompts of one call that are asked at the same time, so that they do not fill the queue."""
_MAX_STEPS: Final = 64


def split_prompts(name: str, body: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """The names and bodies of the requests of one call: one for each prompt of a list.

    Raises RequestError.
    """
    prompts = body.get("prompt")
    if not isinstance(prompts, list) or len(prompts) < 2 or isinstance(prompts[0], int):
        return [(name, body)]
    if len(prompts) > MAX_PROMPTS:
        invalid("prompt", f"prompt has at most {MAX_PROMPTS} entries")
    # A request's id is an identifier, which has at most 64 characters.
    return [
        (f"{name[:58]}.{number}", {**body, "prompt": prompt})
        for number, prompt in enumerate(prompts)
    ]


async def ask_all(
    backend: Backend, calls: Sequence[Call]
) -> AsyncGenerator[tuple[int, Step], None]:
    """The steps of all calls, each with the number of its call; the first failure ends them all.

    Raises RequestError.
    """
    if len(calls) == 1:
        async with aclosing(backend.ask(calls[0])) as steps:
            async for step in steps:
                yield 0, step
        return
    steps_of_all: asyncio.Queue[tuple[int, Step]] = asyncio.Queue(_MAX_STEPS)
    places = asyncio.Semaphore(_AT_ONCE)

    async def ask(number: int, call: Call) -> None:
        async with places, aclosing(backend.ask(call)) as steps:
            async for step in steps:
                await steps_of_all.put((number, step))

    num_open = len(calls)
    try:
        async with asyncio.TaskGroup() as group:
            for number, call in enumerate(calls):
                group.create_task(ask(number, call), name=f"http.prompt.{number}")
            while num_open:
                number, step = await steps_of_all.get()
                num_open -= isinstance(step, FinalMessage)
                yield number, step
    except BaseExceptionGroup as failures:
        raise root_of(failures) from None


def join_finals(name: str, bodies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One answer with the choices of all final messages, in order, and the sum of their usage."""
    if len(bodies) == 1:
        return bodies[0]
    choices = [choice for body in bodies for choice in body["choices"]]
    usage = {field: sum(body["usage"][field] for body in bodies) for field in bodies[0]["usage"]}
    return {
        **{
            field: bodies[0][field]
            for field in ("object", "created", "model", "system_fingerprint")
        },
        "id": name,
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
        "usage": usage,
    }
