"""Askers: each has one request at work, as a program would that must have its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, RequestError
from edgecosine.lab.chaos.checker import Story
from edgecosine.lab.chaos.observer import Observer
from edgecosine.lab.chaos.progress import Progress
from edgecosine.lab.chaos.workload import WorkloadItem
from edgecosine.protocol.api.request import Delta

PATIENCE_S: Final = 60.0
"""How long an asker's client waits for a gateway that went away, before it says so."""
_AGAIN_S: Final = 0.5
_NO_GATEWAY: Final = "gateway_offline"
"""The client's own word: nobody answered, so nothing was decided."""


class ChaosClient:
    """Puts orders in turn through one client, and writes down what it was given."""

    def __init__(
        self,
        client: Client,
        witness: Observer,
        stories: dict[str, Story],
        expected: Sequence[tuple[str, ...]],
        progress: Progress,
    ) -> None:
        self._client, self._witness, self._stories = client, witness, stories
        self._expected, self._progress = expected, progress

    async def run(self, orders: Iterator[WorkloadItem]) -> None:
        """Until there are none left."""
        for order in orders:
            story = Story(self._expected[order.body], order.is_cancelled)
            name = f"{self._client.client_id}/{order.request.request_id}"
            self._stories[name] = story
            while not story.is_over:
                try:
                    await self._ask(order, story)
                except BrokerLost:
                    await asyncio.sleep(_AGAIN_S)
                except RequestError as error:
                    if error.retry_after_s is None and error.code != _NO_GATEWAY:
                        story.failure, story.is_over = error.code, True
                    else:
                        await asyncio.sleep(_AGAIN_S)
            if order.is_repeated:
                self._witness.ask_again(order.request, self._client.client_id)
            self._progress.end()

    async def _ask(self, order: WorkloadItem, story: Story) -> None:
        texts: defaultdict[int, str] = defaultdict(str)
        async with contextlib.aclosing(self._client.ask(order.request)) as steps:
            async for step in steps:
                if isinstance(step, Delta):
                    if order.is_repeated and not texts:
                        self._witness.ask_again(order.request, self._client.client_id)
                    texts[step.choice] += step.text
                    if order.is_cancelled:
                        break
                else:
                    story.told = step.body
        if order.request.stream:
            story.streamed = dict(texts)
        story.is_over = True
