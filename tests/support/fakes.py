"""Stand-ins for the other rooms of the house."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from edgecosine.protocol.api.request import (
    Answer,
    Choice,
    Delta,
    DrafterShare,
    Metrics,
    Progress,
    Request,
    Started,
)


class ScriptedService:
    """Answers every request with the same words, one delta each.

    A prompt in `held` is answered only after `release` was called; one in `errors` never is.
    """

    def __init__(self, words: tuple[str, ...] = ("to", " be"), max_sessions: int = 4) -> None:
        self.words = words
        self.max_sessions = max_sessions
        self.held: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.requests: list[Request] = []
        self.num_closed = 0
        self.has_broken = False
        self._news = asyncio.Event()

    @property
    def info(self) -> Mapping[str, Any]:
        return {"models": ["tiny"], "max_context": 1024, "max_tokens": 512}

    def hold(self, prompt: str) -> asyncio.Event:
        """Make a prompt wait; set the event to let it go on."""
        return self.held.setdefault(prompt, asyncio.Event())

    async def begun(self, num_sessions: int) -> None:
        """Wait until so many sessions have begun."""
        while len(self.requests) < num_sessions:
            self._news.clear()
            await self._news.wait()

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        self.requests.append(request)
        self._news.set()
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        try:
            yield Started()
            yield Delta(0, self.words[0])
            if prompt in self.errors:
                raise self.errors[prompt]
            if prompt in self.held:
                await self.held[prompt].wait()
            for index, word in enumerate(self.words[1:], start=1):
                yield Delta(index, word)
            yield self._whole(request)
        finally:
            self.num_closed += 1

    def _whole(self, request: Request) -> Answer:
        return Answer(
            choices=(Choice("".join(self.words), tuple(range(len(self.words))), "stop"),),
            num_prompt_tokens=3,
            seed=request.sampling.seed,
            model="tiny",
            metrics=Metrics(
                acceptance_histogram=(1, 0, 2),
                num_draft_tokens=6,
                drafters={"d1": DrafterShare(proposed=6, accepted=4)},
                plan="K=2",
            ),
        )
