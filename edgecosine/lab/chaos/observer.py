"""Hears everything that is asked and answered in the cluster, beside the askers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from edgecosine.errors import RequestError
from edgecosine.lab.chaos.checker import Heard, Span, Story, is_refusal
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.answers import parse_piece
from edgecosine.protocol.api.json_fields import read_object
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, Incoming, Outgoing
from edgecosine.protocol.api.openai import render_body
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.topics import (
    InfoTopic,
    RequestTopic,
    ResponseTopic,
    StreamTopic,
    Topics,
)

_SESSION_S: Final = 3600


class Observer:
    """Writes into `stories`, which are known by client and id; `now` is the run's clock."""

    def __init__(
        self, url: str, cluster: str, stories: Mapping[str, Story], now: Callable[[], float]
    ) -> None:
        self._topics, self._stories, self._now = Topics(cluster), stories, now
        self._news = asyncio.Event()
        self._connections: list[Span] = []
        self._lost_s: float | None = None
        self._courier = ReconnectingClient(
            BrokerAddress.parse(url),
            name="chaos-witness",
            receive=self._receive,
            filters=(
                self._topics.requests,
                self._topics.response("+", "+"),
                self._topics.stream("+", "+"),
                self._topics.info,
            ),
            announce=self._come,
            lost=self._lose,
            session_s=_SESSION_S,
        )

    @property
    def connections(self) -> list[Span]:
        """When the gateway or the witness itself connected anew, so far; of the witness from the
        loss to the return, for a broker may deliver again in each attempt between."""
        away = [] if self._lost_s is None else [(self._lost_s, math.inf)]
        return self._connections + away

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear what comes while the block lasts."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._courier.run(), name="witness")
            await self._courier.connected()
            yield
            running.cancel()

    def ask_again(self, request: Request, client_id: str) -> None:
        """Put a request that `client_id` has put, byte by byte the same."""
        request = replace(request, client_id=client_id)
        story = self._stories[request.key]
        story.asked_s.append(self._now())
        self._courier.send(
            Outgoing(
                self._topics.request("completion"), render_body(request), content_type=JSON_TYPE
            )
        )

    async def finals(self, names: list[str], since_s: float) -> None:
        """Wait until each of these requests has had a final message since then."""
        missing = set(names)
        while missing:
            missing = {name for name in missing if not self._has_final(name, since_s)}
            if missing:
                self._news.clear()
                await self._news.wait()

    def _has_final(self, name: str, since_s: float) -> bool:
        return any(
            heard.at_s >= since_s and not is_refusal(heard.payload)
            for heard in reversed(self._stories[name].heard)
        )

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case RequestTopic():
                self._hear_request(message.payload)
            case InfoTopic() if not message.retain:
                # A gateway says it first on each of its connections.
                self._connections.append((self._now(), self._now()))
            case ResponseTopic(client_id, request_id):
                story = self._stories.get(f"{client_id}/{request_id}")
                if story is not None and message.payload:
                    story.heard.append(Heard(self._now(), message.payload))
            case StreamTopic(client_id, request_id):
                story = self._stories.get(f"{client_id}/{request_id}")
                if story is not None:
                    story.pieces.append(parse_piece(message.payload))
        message.acknowledge()
        self._news.set()

    def _lose(self) -> None:
        self._lost_s = self._now()

    def _come(self) -> tuple[Outgoing, ...]:
        if self._lost_s is not None:
            self._connections.append((self._lost_s, self._now()))
            self._lost_s = None
        return ()

    def _hear_request(self, payload: bytes) -> None:
        with contextlib.suppress(RequestError):
            body = read_object(payload)
            story = self._stories.get(f"{body.get('client')}/{body.get('id')}")
            if story is not None:
                story.asked_s.append(self._now())
