"""The Python client of a cluster, over MQTT.

One connection carries any number of requests at once. After a broken connection, requests are sent
again under their ids, which the gateway answers without running them twice. A refusal that names a
time to retry is retried then. Every wait for a gateway is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from edgecosine.client.active_requests import ActiveRequests, no_gateway, too_late
from edgecosine.client.cluster_view import ClusterView
from edgecosine.client.health import concerns
from edgecosine.client.retry import RETRY_PATIENCE_S, RetryPolicy
from edgecosine.errors import BrokerLost, ConfigError, RequestError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta
from edgecosine.protocol.api.retained_topics import KEEP_ONLINE_S, KEEP_S, OFFLINE, ONLINE, NodeView
from edgecosine.protocol.api.topics import (
    ClientStatusTopic,
    ResponseTopic,
    StatusTopic,
    StreamTopic,
    Topics,
    is_identifier,
)

CONNECT_TIMEOUT_S = 10.0
PATIENCE_S = 300.0
"""Seconds that a request waits for a gateway or broker to return: a restart loads the model."""
_MARK = "mark"


class Client:
    """`async with Client(url, cluster) as client: async for step in client.ask(request): …`

    With a username, answers go to topics of that name, which a broker may protect.
    Entering raises BrokerLost when there is no broker, ConfigError when the URL is wrong.
    """

    def __init__(
        self,
        broker: str | BrokerAddress,
        cluster: str,
        *,
        client_id: str | None = None,
        patience_s: float = PATIENCE_S,
        retry_patience_s: float = RETRY_PATIENCE_S,
        on_standstill: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """`on_standstill` receives why requests do not progress, and None when they do again."""
        address = BrokerAddress.parse(broker) if isinstance(broker, str) else broker
        connection = f"cli-{secrets.token_hex(6)}"
        if client_id is not None and not is_identifier(client_id):
            raise ConfigError("client_id", client_id, "1 to 64 letters, digits, '_', '.' or '-'")
        self.client_id = client_id or _topic_name(address) or connection
        self._owns_client_id = self.client_id in (client_id, connection)
        self._mark_id = f"{_MARK}-{connection}"
        self._topics = Topics(cluster)
        self._patience_s, self._retry_patience_s = patience_s, retry_patience_s
        self._on_standstill = on_standstill
        self._standstill: str | None = None
        """The reason that was reported last."""
        self._num_running = 0
        self._watch = ClusterView()
        self._lapse: asyncio.TimerHandle | None = None
        """Fires when the gateway's last status expires."""
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[Any] | None = None
        topics = self._topics
        self._mqtt = ReconnectingClient(
            address,
            name=self.client_id,
            receive=self._receive,
            filters=(
                topics.status,
                topics.info,
                topics.node_status("+"),
                topics.node_state("+"),
                topics.response(self.client_id, "+"),
                topics.stream(self.client_id, "+"),
                *([topics.client_status(self.client_id)] if self._owns_client_id else []),
            ),
            will=self._presence(OFFLINE),
            announce=self._arrive,
            disconnect_messages=lambda: tuple(filter(None, [self._presence(OFFLINE)])),
            lost=self._lose,
            refused=self._give_up,
        )
        self._requests = ActiveRequests(
            topics=topics,
            client_id=self.client_id,
            watch=self._watch,
            send=self._mqtt.send,
            patience_s=patience_s,
        )

    def __repr__(self) -> str:
        return f"<Client {self.client_id} {len(self._requests)} asked {self._mqtt!r}>"

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._mqtt.run(), name=f"{self.client_id}.mqtt")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._mqtt.reached()
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                raise BrokerLost("the broker does not answer") from error
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def ask(self, request: Request) -> AsyncGenerator[Delta | FinalMessage, None]:
        """Yield text as it is generated, where the request streams, and the final message last.

        Closing the generator early cancels the request; `contextlib.aclosing` does so at once.
        Raises RequestError, also when no gateway is online, and BrokerLost.
        """
        self._num_running += 1
        self._report_standstill()
        try:
            async with contextlib.aclosing(self._ask_with_retries(request)) as steps:
                async for step in steps:
                    yield step
        finally:
            self._num_running -= 1
            self._report_standstill()

    async def _ask_with_retries(
        self, request: Request
    ) -> AsyncGenerator[Delta | FinalMessage, None]:
        retrying = RetryPolicy(request, self._retry_patience_s)
        while True:
            try:
                async with contextlib.aclosing(self._ask_once(retrying.request)) as steps:
                    async for step in steps:
                        yield step
            except RequestError as refusal:
                pause_s = retrying.pause_s(refusal)
            else:
                return
            await asyncio.sleep(pause_s)

    async def _ask_once(self, request: Request) -> AsyncGenerator[Delta | FinalMessage, None]:
        left_s = request.deadline_s - await self._gateway(request.deadline_s)
        steps = self._requests.ask(replace(request, deadline_s=left_s))
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step

    async def nodes(self) -> dict[str, NodeView]:
        """The retained status and state of every node of the cluster, by node id.

        Raises BrokerLost.
        """
        await self._complete()
        return self._watch.nodes()

    async def info(self) -> Mapping[str, Any]:
        """The cluster's info, parsed from JSON; empty when there is none.

        Raises BrokerLost.
        """
        await self._complete()
        return self._watch.info()

    async def is_online(self) -> bool:
        """Whether a gateway is online.

        Raises BrokerLost.
        """
        await self._complete()
        return await self._watch.online()

    async def concerns(self) -> list[str]:
        """The cluster's problems, one sentence each; empty when it is healthy.

        Raises BrokerLost.
        """
        is_online = await self.is_online()
        return concerns(
            is_online=is_online, is_draining=self._watch.is_draining, nodes=self._watch.nodes()
        )

    async def _gateway(self, deadline_s: float) -> float:
        """Wait for a gateway that was online before; returns the seconds waited.

        Raises RequestError and BrokerLost.
        """
        now = asyncio.get_running_loop().time
        begun = now()
        if await self.is_online():
            return 0.0
        patient_until = self._watch.offline_since + self._patience_s
        late = begun + deadline_s
        if math.isinf(self._watch.offline_since):
            raise no_gateway(self._topics.cluster, self._watch.starting)
        try:
            async with asyncio.timeout_at(min(patient_until, late)):
                while not self._watch.is_online:
                    await self.changed()
        except TimeoutError:
            raise too_late() if now() >= late else no_gateway(self._topics.cluster) from None
        return now() - begun

    def _report_standstill(self) -> None:
        """Report why our requests do not progress, if the reason has changed."""
        reason = self._why_still() if self._num_running else None
        if reason != self._standstill:
            self._standstill = reason
            self._on_standstill(reason)

    def _why_still(self) -> str | None:
        if not self._watch.is_online:
            is_known = math.isfinite(self._watch.offline_since)
            return "the gateway went away" if is_known else None
        stalls = self._watch.unavailable.items()
        return next((f"{name} is unavailable: {reason}" for name, reason in stalls), None)

    async def changed(self) -> None:
        """Wait for a change in the results of `nodes`, `info` or `is_online`."""
        await self._watch.changed()

    async def _complete(self) -> None:
        """Wait until the broker has sent all retained messages."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._watch.complete()
        except TimeoutError as error:
            raise BrokerLost("the broker does not answer") from error

    def _arrive(self) -> tuple[Outgoing, ...]:
        """Our status, and a message to ourselves, which arrives after all retained messages."""
        mark = Outgoing(self._topics.response(self.client_id, self._mark_id), b"")
        return tuple(filter(None, [self._presence(ONLINE), mark]))

    def _presence(self, payload: bytes) -> Outgoing | None:
        """Our status, by which a gateway cancels the requests of clients that are gone.

        None where several clients share the id of their user.
        """
        if not self._owns_client_id:
            return None
        return Outgoing(self._topics.client_status(self.client_id), payload)

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case StreamTopic(_, request_id):
                self._requests.take_piece(request_id, message.payload)
            case ResponseTopic(_, request_id) if (
                request_id == self._mark_id and not message.payload
            ):
                self._watch.take_mark()
            case ResponseTopic(_, request_id):
                self._requests.take_final(request_id, message.payload)
            case ClientStatusTopic():
                if message.payload == OFFLINE:
                    # The will of an earlier connection, whose end the broker noticed only now.
                    self._mqtt.send(Outgoing(message.topic, ONLINE))
            case StatusTopic():
                self._take_status(message.payload, message.expiry_s)
            case topic:
                # With MQTT 5, a retained message carries the rest of its expiry interval.
                left_s = KEEP_S if message.expiry_s is None else message.expiry_s
                age_s = max(0.0, KEEP_S - left_s) if message.retain else 0.0
                self._watch.take(topic, message.payload, age_s)
                self._report_standstill()

    def _take_status(self, payload: bytes, left_s: float | None = None) -> None:
        """Handle the cluster's status, which expires after `left_s` seconds, if it expires."""
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None
        if payload and left_s is not None:
            loop = asyncio.get_running_loop()
            self._lapse = loop.call_later(min(left_s, KEEP_ONLINE_S), self._take_status, b"")
        if self._watch.take_status(payload):
            self._requests.on_gateway()
            self._report_standstill()

    def _give_up(self, message: Outgoing, reason: str) -> None:
        """Handle a message that the broker refuses."""
        self._requests.undeliverable(message, reason)

    def _lose(self) -> None:
        """Handle the loss of the connection."""
        if self._watch.lose():
            self._requests.on_gateway()
            self._report_standstill()

    async def _end(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
        if self._task is not None:
            self._task.cancel()
        await self._group.__aexit__(None, None, None)


def _topic_name(address: BrokerAddress) -> str | None:
    """The username, where it can be a level of a topic."""
    name = address.username
    return name if name and is_identifier(name) else None
