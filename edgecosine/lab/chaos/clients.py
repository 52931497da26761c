"""Clients of a chaos run: each sends a request again until it has an answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, RequestError
from edgecosine.lab.chaos.checker import RequestHistory
from edgecosine.lab.chaos.observer import Observer
from edgecosine.lab.chaos.progress import Progress
from edgecosine.lab.chaos.workload import WorkloadItem
from edgecosine.lab.load_generator import read_answer
from edgecosine.protocol.api.result import Delta

PATIENCE_S: Final = 60.0
"""How long a client waits for an offline gateway before it reports an error."""
_RETRY_S: Final = 0.5
_NO_GATEWAY: Final = "gateway_offline"
"""The client's own error code: no gateway answered, so the end of the request is unknown."""


class ChaosClients:
    """Sends the workload through several clients and records what each of them received."""

    def __init__(
        self,
        clients: Sequence[Client],
        observer: Observer,
        histories: dict[str, RequestHistory],
        expected: Sequence[tuple[str, ...]],
        progress: Progress,
    ) -> None:
        self._clients, self._observer, self._histories = clients, observer, histories
        self._expected, self._progress = expected, progress

    async def run(self, item: WorkloadItem, worker: int) -> None:
        """Send one request, again after each refusal or lost connection, until it has ended."""
        client = self._clients[worker % len(self._clients)]
        history = RequestHistory(self._expected[item.body], item.is_cancelled)
        self._histories[f"{client.client_id}/{item.request.request_id}"] = history
        while not history.is_over:
            try:
                await self._ask(client, item, history)
            except BrokerLost:
                await asyncio.sleep(_RETRY_S)
            except RequestError as error:
                if error.retry_after_s is None and error.code != _NO_GATEWAY:
                    history.failure, history.is_over = error.code, True
                else:
                    await asyncio.sleep(_RETRY_S)
        if item.is_repeated:
            self._observer.ask_again(item.request, client.client_id)
        self._progress.end()

    async def _ask(self, client: Client, item: WorkloadItem, history: RequestHistory) -> None:
        texts: defaultdict[int, str] = defaultdict(str)

        def on_delta(delta: Delta) -> bool:
            if item.is_repeated and not texts:
                self._observer.ask_again(item.request, client.client_id)
            texts[delta.choice] += delta.text
            return not item.is_cancelled

        final = await read_answer(client, item.request, on_delta)
        if final is not None:
            history.answer = final.body
        if item.request.stream:
            history.streamed = dict(texts)
        history.is_over = True
