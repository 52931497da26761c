"""Streams of events over a connection whose client is slow, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from edgecosine.http import replies
from edgecosine.http.replies import EventReply
from edgecosine.http.server import ABORT
from tests.support.mqtt import run


async def never() -> Any:
    """A client that sends nothing more."""
    await asyncio.Event().wait()


def test_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "SEND_TIMEOUT_S", 0.01)

    async def scenario() -> None:
        ended, aborted, sent = asyncio.Event(), asyncio.Event(), list[Any]()

        async def events() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"{}"
            finally:
                ended.set()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) > 3:
                await never()

        reply = EventReply(events(), lambda _: b"", {})
        with pytest.raises(ConnectionAbortedError):
            await reply({"state": {ABORT: aborted.set}}, never, send)
        assert ended.is_set()
        assert aborted.is_set()

    run(scenario())
