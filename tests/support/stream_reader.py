"""An MQTT client that sends streamed requests and checks every part of their answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.topics import ResponseTopic, StreamTopic, Topics

SAMPLED_BODIES: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3, "stop": ["\n\n\n", "zzz"], "logprobs": 2},
    {"temperature": 1, "seed": 4, "n": 2, "presence_penalty": 0.5, "min_tokens": 20},
    {"temperature": 0.7, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.1, "ignore_eos": True},
    {"temperature": 0.9, "seed": 6, "response_format": {"type": "json_schema", "json_schema": {
        "name": "lines", "schema": {
            "type": "array", "minItems": 6, "maxItems": 8,
            "items": {"type": "string", "minLength": 60, "maxLength": 90},
        },
    }}},
)  # fmt: skip
"""Fields of requests that together use every kind of sampling, several choices, stop strings
and a response format."""


@dataclass
class ReceivedAnswer:
    """What the reader has received for one request."""

    texts: dict[int, str] = field(default_factory=dict)
    """By number of the choice."""
    finals: Counter[bytes] = field(default_factory=Counter)
    body: bytes = b""
    num_sent: int = 0

    def add(self, part: dict[str, Any]) -> bool:
        """False where a part before this one is missing."""
        if part["fin"]:
            return True
        choice, index, delta = part.get("choice", 0), part["i"], part["delta"]
        text = self.texts.get(choice, "")
        if index > len(text):
            return False
        assert text[index : index + len(delta)] == delta[: len(text) - index], "a contradiction"
        self.texts[choice] = text[:index] + delta + text[index + len(delta) :]
        return True

    def check(self, body: Any) -> None:
        """The stream has the text of the final message, in each choice."""
        texts = [choice["text"] for choice in body["choices"]]
        assert [self.texts.get(number, "") for number in range(len(texts))] == texts


class StreamReader:
    """Sends requests, reads their streams, and sends a request again where a part is missing."""

    def __init__(self, broker_url: str, topics: Topics) -> None:
        self.answers: dict[str, ReceivedAnswer] = {}
        self.num_gaps = 0
        self._topics = topics
        self._num_sent = self._num_delivered = 0
        self._changed = asyncio.Event()
        self._client = ReconnectingClient(
            BrokerAddress.parse(broker_url),
            name="reader",
            receive=self._receive,
            filters=(topics.response("cli", "+"), topics.stream("cli", "+")),
            delivered=self._count_delivered,
            session_s=600,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._client.run())
            await self._client.connected()
            yield
            task.cancel()

    def send(self, request_id: str, **fields: Any) -> None:
        """Send a new request."""
        body = {"client": "cli", "id": request_id, "stream": True, "max_tokens": 48, **fields}
        self.answers[request_id] = ReceivedAnswer(body=json.dumps(body).encode())
        self.send_again(request_id)

    def send_again(self, request_id: str) -> None:
        """Send the same request once more."""
        self._num_sent += 1
        answer = self.answers[request_id]
        answer.num_sent += 1
        self._client.send(Outgoing(self._topics.request("completion"), answer.body))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_delivered(self) -> None:
        """Wait until the broker has all requests."""
        await self.until(lambda: self._num_delivered == self._num_sent)

    async def until_longer(self, names: list[str], num_chars: int = 20) -> None:
        """Wait until one of the requests has so much more text, or all have ended."""
        lengths = {name: self._length(name) for name in names}
        await self.until(
            lambda: (
                any(self._length(name) > lengths[name] + num_chars for name in names)
                or all(self.answers[name].finals for name in names)
            )
        )

    async def final_bodies(self, *request_ids: str) -> list[Any]:
        """The final messages, each of which came with one content."""
        await self.until(lambda: all(self.answers[each].finals for each in request_ids))
        bodies = []
        for each in request_ids:
            [final] = self.answers[each].finals
            bodies.append(json.loads(final))
        return bodies

    def _length(self, name: str) -> int:
        return sum(map(len, self.answers[name].texts.values()))

    def _count_delivered(self, _: Outgoing) -> None:
        self._num_delivered += 1
        self._changed.set()

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case ResponseTopic(_, request_id):
                self.answers[request_id].finals[message.payload] += 1
            case StreamTopic(_, request_id):
                if not self.answers[request_id].add(json.loads(message.payload)):
                    self.num_gaps += 1
                    self.send_again(request_id)
        message.acknowledge()
        self._changed.set()


def content(body: Any) -> Any:
    """The part of a final message that no fault may change."""
    return body["choices"], body["usage"]
