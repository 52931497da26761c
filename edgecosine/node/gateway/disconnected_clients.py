"""Cancels the requests of clients that stay disconnected for longer than a grace period."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

GRACE_S = 10.0
"""The time that our own client works without a broker."""
_MAX_AWAY = 1024


class DisconnectedClients:
    """Calls `cancel` with the name of each client that stays away for `grace_s` seconds."""

    def __init__(self, cancel: Callable[[str], None], grace_s: float = GRACE_S) -> None:
        self._cancel, self._grace_s = cancel, grace_s
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<DisconnectedClients [{len(self._timers)} away]>"

    def disconnected(self, client_id: str) -> None:
        """Start a client's grace period: its last will arrived, or it signed off."""
        if client_id in self._timers or len(self._timers) >= _MAX_AWAY:
            return
        loop = asyncio.get_running_loop()
        self._timers[client_id] = loop.call_later(self._grace_s, self._expire, client_id)

    def connected(self, client_id: str) -> None:
        """End a client's grace period."""
        if (timer := self._timers.pop(client_id, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Stop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _expire(self, client_id: str) -> None:
        del self._timers[client_id]
        self._cancel(client_id)
