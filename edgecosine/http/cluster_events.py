"""The cluster as its nodes publish it on MQTT, as events for the readers of a page.

The broker is connected only while an event stream is open. Each reader gets the newest state when
it is ready for it: nothing is queued for a slow one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, NoReturn

import msgspec

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, Refusal
from edgecosine.metrics.history import PERIOD_S, History
from edgecosine.protocol.api.retained_topics import NodeView

logger = logging.getLogger(__name__)

MAX_READERS: Final = 32
_SHORTEST_PERIOD_S: Final = 0.5
_LONGEST_PERIOD_S: Final = 2.0
_CROWDED: Final = Refusal(
    f"{MAX_READERS} pages are open already", code="overloaded", status=503, retry_after_s=10.0
)


class ClusterEvents:
    """The events of one cluster. `new_client` makes a client of its broker."""

    def __init__(
        self,
        new_client: Callable[[], Client],
        *,
        cluster: str,
        node_id: str,
        history: History | None = None,
    ) -> None:
        """`history` is the target's own, if the node is one."""
        self._new_client, self._history = new_client, history
        self._base = {"cluster": cluster, "node": node_id}
        self._latest = b""
        self._news, self._has_readers = asyncio.Event(), asyncio.Event()
        self._num_readers = 0

    def __repr__(self) -> str:
        return f"<ClusterEvents [{self._num_readers} readers]>"

    async def run(self) -> NoReturn:
        """Sample the target and watch the cluster until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample(), name="page.history")
            group.create_task(self._watch(), name="page.watch")
        raise AssertionError("the events end by an exception")

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield the history once, then the cluster's state whenever it changed.

        Raises RequestError when too many read.
        """
        if self._num_readers >= MAX_READERS:
            raise _CROWDED.error()
        self._num_readers += 1
        self._has_readers.set()
        try:
            yield msgspec.json.encode({"history": self._history.samples if self._history else []})
            sent = b""
            while True:
                if self._latest != sent:
                    sent = self._latest
                    yield sent
                await self._news.wait()
        finally:
            self._num_readers -= 1
            if not self._num_readers:
                self._has_readers.clear()
                self._latest = b""

    async def _sample(self) -> None:
        while self._history is not None:
            self._history.sample(time.time())
            await asyncio.sleep(PERIOD_S)

    async def _watch(self) -> NoReturn:
        while True:
            await self._has_readers.wait()
            try:
                async with self._new_client() as client:
                    while self._num_readers:
                        self._publish(await _state(client))
                        await _wait_for_change(client)
            except BrokerLost as error:
                self._publish({"broker": str(error), "nodes": {}})
                await asyncio.sleep(_LONGEST_PERIOD_S)

    def _publish(self, state: Mapping[str, Any]) -> None:
        samples = self._history.samples[-1:] if self._history else ()
        self._latest = msgspec.json.encode({**self._base, **state, "samples": samples})
        self._news.set()
        self._news = asyncio.Event()


async def _state(client: Client) -> dict[str, Any]:
    """Raises BrokerLost."""
    nodes = await client.nodes()
    return {
        "broker": None,
        "is_online": await client.is_online(),
        "concerns": await client.concerns(),
        "models": (await client.info()).get("models", []),
        "nodes": {node_id: _node(view) for node_id, view in nodes.items()},
    }


def _node(view: NodeView) -> dict[str, Any]:
    status = view.status
    return {
        "status": "unknown" if status is None else status.state,
        "reason": "" if status is None else status.reason,
        "state": view.state,
    }


async def _wait_for_change(client: Client) -> None:
    await asyncio.sleep(_SHORTEST_PERIOD_S)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LONGEST_PERIOD_S - _SHORTEST_PERIOD_S):
            await client.changed()
