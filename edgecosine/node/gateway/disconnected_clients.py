"""Clients whose connection broke: who does not come back soon wants no answers any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

GRACE_S = 10.0
"""As long as our own client bears to be without a broker."""
_MAX_ABSENT = 1024


class DisconnectedClients:
    """Who is away; `gone` is called with the name of each client that stays away for `grace_s`."""

    def __init__(self, gone: Callable[[str], None], grace_s: float = GRACE_S) -> None:
        self._gone, self._grace_s = gone, grace_s
        self._alarms: dict[str, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<DisconnectedClients [{len(self._alarms)} away]>"

    def left(self, client_id: str) -> None:
        """The client's will was published, or its own word that it goes."""
        if client_id in self._alarms or len(self._alarms) >= _MAX_ABSENT:
            return
        loop = asyncio.get_running_loop()
        self._alarms[client_id] = loop.call_later(self._grace_s, self._end, client_id)

    def came(self, client_id: str) -> None:
        """The client is here."""
        alarm = self._alarms.pop(client_id, None)
        if alarm is not None:
            alarm.cancel()

    def close(self) -> None:
        """Nobody is waited for any more."""
        for alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()

    def _end(self, client_id: str) -> None:
        del self._alarms[client_id]
        self._gone(client_id)
