"""Records all requests and answers in the cluster, independently of its clients."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from edgecosine.errors import RequestError
from edgecosine.lab.chaos.checker import ReceivedMessage, RequestHistory, Span, is_refusal
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
    """Writes into `histories`, by client and request id; `now` is the run's clock."""

    def __init__(
        self,
        url: str,
        cluster: str,
        histories: Mapping[str, RequestHistory],
        now: Callable[[], float],
    ) -> None:
        self._topics, self._histories, self._now = Topics(cluster), histories, now
        self._received = asyncio.Event()
        self._connections: list[Span] = []
        self._lost_s: float | None = None
        self._mqtt = ReconnectingClient(
            BrokerAddress.parse(url),
            name="chaos-observer",
            receive=self._receive,
            filters=(
                self._topics.requests,
                self._topics.response("+", "+"),
                self._topics.stream("+", "+"),
                self._topics.info,
            ),
            announce=self._on_connect,
            lost=self._on_loss,
            session_s=_SESSION_S,
        )

    @property
    def connections(self) -> list[Span]:
        """Time spans in which the gateway or the observer reconnected, in seconds of the run.

        A span of the observer lasts from the loss until it is connected, since each attempt may
        cause a redelivery.
        """
        lost = [] if self._lost_s is None else [(self._lost_s, math.inf)]
        return self._connections + lost

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Record messages during the block."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._mqtt.run(), name="observer")
            await self._mqtt.connected()
            yield
            running.cancel()

    def ask_again(self, request: Request, client_id: str) -> None:
        """Send a request of `client_id` again, byte for byte the same."""
        request = replace(request, client_id=client_id)
        history = self._histories[request.key]
        history.sent_s.append(self._now())
        self._mqtt.send(
            Outgoing(
                self._topics.request("completion"), render_body(request), content_type=JSON_TYPE
            )
        )

    async def finals(self, names: list[str], since_s: float) -> None:
        """Wait until the observer has received a final message of each of these requests, at
        `since_s` or later."""
        missing = set(names)
        while missing:
            missing = {name for name in missing if not self._has_final(name, since_s)}
            if missing:
                self._received.clear()
                await self._received.wait()

    def _has_final(self, name: str, since_s: float) -> bool:
        return any(
            received.at_s >= since_s and not is_refusal(received.payload)
            for received in reversed(self._histories[name].received)
        )

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case RequestTopic():
                self._receive_request(message.payload)
            case InfoTopic() if not message.retain:
                # A gateway publishes this first on each new connection.
                self._connections.append((self._now(), self._now()))
            case ResponseTopic(client_id, request_id):
                history = self._histories.get(f"{client_id}/{request_id}")
                if history is not None and message.payload:
                    history.received.append(ReceivedMessage(self._now(), message.payload))
            case StreamTopic(client_id, request_id):
                history = self._histories.get(f"{client_id}/{request_id}")
                if history is not None:
                    history.stream_parts.append(parse_piece(message.payload))
        message.acknowledge()
        self._received.set()

    def _on_loss(self) -> None:
        self._lost_s = self._now()

    def _on_connect(self) -> tuple[Outgoing, ...]:
        if self._lost_s is not None:
            self._connections.append((self._lost_s, self._now()))
            self._lost_s = None
        return ()

    def _receive_request(self, payload: bytes) -> None:
        with contextlib.suppress(RequestError):
            body = read_object(payload)
            history = self._histories.get(f"{body.get('client')}/{body.get('id')}")
            if history is not None:
                history.sent_s.append(self._now())
