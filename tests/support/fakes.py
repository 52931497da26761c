"""Fakes for what surrounds a gateway: a service, a queue without peers, a reply transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.node.cluster_queue.interface import RequestQueue
from edgecosine.node.cluster_queue.local_queue import LocalQueue
from edgecosine.node.durability.interface import Journal, NoJournal
from edgecosine.node.durability.recovery import NOTHING_RECOVERED, RecoveredState
from edgecosine.node.gateway.reply_sink import MqttReplySink
from edgecosine.node.gateway.request_manager import RequestManager
from edgecosine.node.gateway.service import Service
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import read_final
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.result import (
    Answer,
    Choice,
    Delta,
    DrafterShare,
    Metrics,
    Progress,
    Started,
)
from edgecosine.protocol.api.topics import Topics


def request_manager(
    service: Service,
    publish: Callable[[Outgoing], None],
    admission: AdmissionControl,
    *,
    journal: Journal | None = None,
    counters: Counters | None = None,
    recovered: RecoveredState = NOTHING_RECOVERED,
    queue: RequestQueue | None = None,
) -> RequestManager:
    """A lone target's request manager, which publishes in the cluster `home`."""
    manager = RequestManager(
        service,
        MqttReplySink(Topics("home"), publish),
        admission=admission,
        journal=journal or NoJournal(),
        queue=queue or LocalQueue(lambda claim: manager.start(claim)),  # noqa: PLW0108 -- built here
        counters=counters or Counters(),
        recovered=recovered,
    )
    return manager


def acknowledge(manager: RequestManager, message: Outgoing) -> None:
    """Report a publication as delivered, as the gateway does."""
    if (final := read_final(message)) is not None:
        manager.delivered(final)


class ScriptedService:
    """Answers every request with the same words, one delta each.

    A prompt in `held` waits for its event, one in `errors` raises during its session, and one in
    `invalid` is refused by `check`.
    """

    commits = True
    """Whether each delta has a token, which the journal records as progress."""

    def __init__(self, words: tuple[str, ...] = ("to", " be"), max_sessions: int = 4) -> None:
        self.words = words
        self.max_sessions = max_sessions
        self.held: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.invalid: dict[str, BaseException] = {}
        self.requests: list[Request] = []
        self.num_closed = 0
        self.has_engine_failed = False
        self.tokenizer = None
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

    async def ended(self, num_sessions: int) -> None:
        """Wait until so many sessions have ended."""
        while self.num_closed < num_sessions:
            self._news.clear()
            await self._news.wait()

    def check(self, request: Request) -> None:
        if (error := self.invalid.get(_text(request))) is not None:
            raise error

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        self.requests.append(request)
        self._news.set()
        prompt = _text(request)
        try:
            yield Started(3)
            yield self._delta(0)
            if prompt in self.errors:
                raise self.errors[prompt]
            if prompt in self.held:
                await self.held[prompt].wait()
            for index in range(1, len(self.words)):
                yield self._delta(index)
            yield self._whole(request)
        finally:
            self.num_closed += 1
            self._news.set()

    def _delta(self, index: int) -> Delta:
        tokens = (index,) if self.commits else ()
        return Delta(index, self.words[index], committed=Committed(tokens))

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


def _text(request: Request) -> str:
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
