"""A cluster that is reached over MQTT, as the backend of an HTTP frontend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final, NoReturn

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, Refusal
from edgecosine.http.backend import Call, Step, Tokenizer

_RETRY_S: Final = 5.0
_OFFLINE: Final = Refusal(
    "no target of the cluster is online", code="gateway_offline", status=503, retry_after_s=_RETRY_S
)
_LEAVING: Final = Refusal(
    "this gateway is shutting down", code="draining", status=503, retry_after_s=_RETRY_S
)


class MqttBackend:
    """Sends requests to the targets of a cluster by `client`; implements `Backend`.

    To the targets all requests are those of one client. They are kept by their ids there, so that a
    request that is repeated under its id is not run twice.
    """

    tokenizer: Tokenizer | None = None

    def __init__(self, client: Client) -> None:
        self._client = client
        self._info: Mapping[str, Any] = {}
        self._is_online = self._is_leaving = False
        self._num_active = 0
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<MqttBackend {self._client!r} [{self._num_active} active]>"

    async def run(self) -> NoReturn:
        """Follow the cluster's info and status until cancelled."""
        while True:
            try:
                self._info = await self._client.info()
                self._is_online = await self._client.is_online()
            except BrokerLost:
                self._is_online = False
            await self._client.changed()

    @property
    def info(self) -> Mapping[str, Any]:
        """The cluster's info; without models while no target is known."""
        return {"models": [], "max_context": 0, "max_tokens": 1, **self._info}

    @property
    def objection(self) -> Refusal | None:
        """Why new requests are refused now; None if they are taken."""
        if self._is_leaving:
            return _LEAVING
        return None if self._is_online else _OFFLINE

    async def ask(self, call: Call) -> AsyncGenerator[Step, None]:
        """Yield the steps of a request; closing the generator early cancels it at the target.

        Raises RequestError.
        """
        if self._is_leaving:
            raise _LEAVING.error()
        self._num_active += 1
        try:
            async with aclosing(self._client.ask(call.request)) as steps:
                async for step in steps:
                    yield step
        finally:
            self._num_active -= 1
            self._ended.set()

    async def wind_down(self) -> None:
        """Take no new requests; returns when the active ones have ended."""
        self._is_leaving = True
        while self._num_active:
            self._ended.clear()
            await self._ended.wait()
