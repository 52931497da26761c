"""Dials the peers that the roster names, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from edgecosine.discovery.events import Dial
from edgecosine.errors import LinkError, LinkLost, PeerMismatched
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.listener import connect

_MAX_DIALS: Final = 16


class Dialler:
    """One task for each peer that is being dialled; a new dial of a peer replaces the former."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_MAX_DIALS)
        self._known_slots = asyncio.Semaphore(_MAX_DIALS)

    def __len__(self) -> int:
        return len(self._tasks)

    def dial(
        self,
        dial: Dial,
        start: Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_outcome: Callable[[Dial, Link | LinkError], None],
    ) -> None:
        """Dial in a task made by `start`; `on_outcome` receives the link or the failure."""
        replaced = self._tasks.get(dial.contact)
        if replaced is not None:
            replaced.cancel()
        work = self._dial(dial, on_outcome)
        self._tasks[dial.contact] = start(f"dial-{dial.contact}", work)

    async def _dial(self, dial: Dial, on_outcome: Callable[[Dial, Link | LinkError], None]) -> None:
        try:
            # Any number of unknown peers can be announced, so they have separate slots.
            async with self._known_slots if dial.is_known else self._slots:
                outcome = await self._connect(dial)
        finally:
            if self._tasks.get(dial.contact) is asyncio.current_task():
                del self._tasks[dial.contact]
        on_outcome(dial, outcome)

    async def _connect(self, dial: Dial) -> Link | LinkError:
        """The link to the first address that is the right node, or the most informative failure."""
        failure: LinkError = LinkLost("it has no address")
        for endpoint in dial.endpoints:
            try:
                link = await connect(endpoint, self._settings)
            except LinkError as error:
                if not isinstance(failure, PeerMismatched):
                    failure = error
                continue
            if dial.node_id in (None, link.peer.node_id):
                return link
            link.close(f"dialled {dial.node_id}, found {link.peer.node_id}")
            failure = LinkLost(f"{endpoint} is {link.peer.node_id}, not {dial.node_id}")
        return failure
