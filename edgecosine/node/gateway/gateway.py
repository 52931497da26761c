"""Connects the cluster's MQTT topics to a target's requests.

A message takes this way: the client's inbox (`mqtt/inbox.py`), `RequestParser`, `RequestManager`
(admission, cluster queue, journal), `RequestRunner` (queue position, session), `ReplyPublisher`,
and back to the client. Each accepted request gets exactly one final: an answer or an error, or
notice that it was cancelled or expired. Sessions outlast a lost broker, and their replies are sent
after reconnection. The gateway owns the cluster's `status` topic and its last will;
`NodeStatusPublisher` publishes the status of the node.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Sequence
from typing import NoReturn

from edgecosine import __version__
from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.errors import RequestError
from edgecosine.log_throttle import LogThrottle
from edgecosine.metrics.measurements import Measurements
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.inbox import Inbox
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.node.cluster_queue.coordinator import QueueCoordinator
from edgecosine.node.cluster_queue.local_queue import LocalQueue, RoutedQueue
from edgecosine.node.durability.interface import KEEP_ANSWERS_S, Journal, NoJournal
from edgecosine.node.durability.recovery import NOTHING_RECOVERED, RecoveredState
from edgecosine.node.gateway.disconnected_clients import GRACE_S, DisconnectedClients
from edgecosine.node.gateway.local_requests import (
    LocalReplySink,
    LocalRequests,
    RoutedReplySink,
)
from edgecosine.node.gateway.reply_sink import MqttReplySink
from edgecosine.node.gateway.request_manager import RequestManager
from edgecosine.node.gateway.service import Service, model_of
from edgecosine.node.runtime.clock import loop_time
from edgecosine.node.runtime.failures import INBOX_FULL, cause_of
from edgecosine.protocol.api.json_fields import read_names, read_object
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.openai import RequestLimits
from edgecosine.protocol.api.parse_request import ANONYMOUS, RequestParser
from edgecosine.protocol.api.replies import read_final
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.retained_topics import (
    DRAINING,
    OFFLINE,
    ONLINE,
    RENEW_ONLINE_S,
    info_notice,
    status_notice,
)
from edgecosine.protocol.api.topics import (
    CancelTopic,
    ClientStatusTopic,
    RequestTopic,
    StatusTopic,
    Topics,
)
from edgecosine.security.client_ids import ClientIds

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 256 << 10
MAX_UNREAD = 1024
MAX_UNREAD_BYTES = 16 << 20
_CHECK_INFO_S = 1.0


class Gateway:
    """Serves MQTT clients until `run` is cancelled."""

    def __init__(
        self,
        service: Service,
        *,
        broker: BrokerAddress,
        cluster: str,
        node_id: str,
        max_queued: int = 64,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        counters: Counters | None = None,
        absence_s: float = GRACE_S,
        journal: Journal | None = None,
        recovered: RecoveredState = NOTHING_RECOVERED,
        keep_answers_s: float = KEEP_ANSWERS_S,
        identity: str = "",
        client_ids: ClientIds | None = None,
        measurements: Measurements | None = None,
    ) -> None:
        self._service, self._node_id, self._max_queued = service, node_id, max_queued
        self._topics = Topics(cluster)
        self._counters = counters or Counters()
        self._journal = journal or NoJournal()
        self._status = ONLINE
        self._sent_info: Outgoing | None = None
        self._log_throttle = LogThrottle()
        client_ids = client_ids or ClientIds()
        self.admission = AdmissionControl(num_slots=service.max_sessions, max_queued=max_queued)
        self._parser = RequestParser(
            self._topics,
            max_request_bytes=max_request_bytes,
            draw_id=lambda: secrets.token_hex(8),
            draw_seed=lambda: secrets.randbits(64),
        )
        self.queue = QueueCoordinator(
            broker=broker,
            topics=self._topics,
            node_id=node_id,
            identity=identity,
            model=model_of(service),
            counters=self._counters,
            client_ids=client_ids,
            start=lambda claim: self._manager.start(claim),  # noqa: PLW0108 -- built below
            abandon=lambda key: self._manager.abandon(key),  # noqa: PLW0108 -- the same
            has_finished=lambda key: self._manager.table.has_finished(key),  # noqa: PLW0108
        )
        session_s = math.ceil(keep_answers_s) if self._journal.is_durable else 0
        self.client = self._new_client(broker, client_ids, session_s)
        local_replies = LocalReplySink(lambda final: self._manager.delivered(final))  # noqa: PLW0108 -- the same
        self._manager = RequestManager(
            service,
            RoutedReplySink(MqttReplySink(self._topics, self.client.send), local_replies),
            admission=self.admission,
            journal=self._journal,
            queue=RoutedQueue(self.queue, LocalQueue(lambda claim: self._manager.start(claim))),  # noqa: PLW0108 -- the same
            counters=self._counters,
            recovered=recovered,
            keep_answers_s=keep_answers_s,
            measurements=measurements,
        )
        self.local = LocalRequests(service, self._manager, local_replies)
        """Requests over HTTP."""
        self._disconnected = DisconnectedClients(self._manager.cancel_all, absence_s)

    def _new_client(
        self, broker: BrokerAddress, client_ids: ClientIds, session_s: int
    ) -> ReconnectingClient:
        name = f"edgecosine-{self._topics.cluster}-{self._node_id}-gateway"
        return ReconnectingClient(
            broker,
            name=name,
            client_id=client_ids.of(name),
            receive=self._receive,
            filters=(
                self._topics.requests,
                self._topics.cancels,
                self._topics.client_status("+"),
                self._topics.status,
            ),
            will=status_notice(self._topics, OFFLINE),
            announce=self._connect_messages,
            disconnect_messages=self._disconnect_messages,
            counters=self._counters,
            delivered=self._on_delivered,
            refused=self._on_undeliverable,
            session_s=session_s,
            inbox=Inbox(
                max_messages=MAX_UNREAD,
                max_bytes=MAX_UNREAD_BYTES,
                lane=self._sender,
                on_drop=self._refuse_unread,
            ),
        )

    def __repr__(self) -> str:
        return f"<Gateway {self._manager!r} {self.client!r}>"

    async def run(self) -> NoReturn:
        """Serve until cancelled; then every active request gets its final or stays journalled."""
        async with self.queue.open(), asyncio.TaskGroup() as group:
            group.create_task(self._journal.run(), name=f"{self._node_id}.journal")
            # The journal ends last, since it records which finals the broker has received.
            await self._serve()
        raise AssertionError("a gateway ends by an exception")

    async def _serve(self) -> NoReturn:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_client(), name=f"{self._node_id}.gateway.client")
            group.create_task(self._renew_status(), name=f"{self._node_id}.gateway.status")
            # In this task, so that the last finals are queued before the client disconnects.
            try:
                await self._manager.run()
            finally:
                self._disconnected.close()
        raise AssertionError("a gateway ends by an exception")

    async def _run_client(self) -> NoReturn:
        """Receive requests once the claims of the other targets are known."""
        await self.queue.joined()
        await self.client.run()

    async def _renew_status(self) -> NoReturn:
        """Publish the status before it expires, and the list of targets when it changes."""
        number = 0
        while True:
            await asyncio.sleep(_CHECK_INFO_S)
            number += 1
            if not self.client.is_connected:
                continue
            if (info := self._info()) != self._sent_info:
                self.client.send(info)
                self._sent_info = info
            if number % round(RENEW_ONLINE_S / _CHECK_INFO_S) == 0:
                self._send_status()

    async def drain(self) -> None:
        """Refuse new requests and wait until no request is active.

        While another target takes new requests, the cluster's status stays online.
        """
        self._status = DRAINING
        self.queue.set_status("draining")
        self._manager.drain()
        self._send_status()
        await self._manager.runner.idle()

    def set_unavailable(self, reason: str | None) -> None:
        """Refuse new requests for this reason; None: accept them."""
        self.queue.set_status("ready" if reason is None else "unavailable")
        self._manager.set_unavailable(reason)

    def set_stall(self, reason: str | None) -> None:
        """Report why active requests do not advance; None: they do."""
        self._manager.set_stall(reason)

    def _info(self) -> Outgoing:
        targets = sorted({self._node_id, *self.queue.state.members.others})
        return info_notice(
            self._topics,
            version=__version__,
            info={**self._service.info, "targets": targets},
            limits={
                "max_sessions": self._service.max_sessions,
                "max_queued": self._max_queued,
                "max_queued_per_client": self.admission.max_queued_per_client,
                "max_request_bytes": self._parser.max_request_bytes,
            },
        )

    def _connect_messages(self) -> Sequence[Outgoing]:
        self._sent_info = self._info()
        return (self._sent_info, *self._status_messages())

    def _disconnect_messages(self) -> Sequence[Outgoing]:
        return () if self.queue.active_peers else (status_notice(self._topics, OFFLINE),)

    def _status_messages(self) -> Sequence[Outgoing]:
        """Return the cluster's status, unless another target has to publish it."""
        if self._status == DRAINING and self.queue.has_ready_peer:
            return ()
        return (status_notice(self._topics, self._status),)

    def _send_status(self) -> None:
        for status in self._status_messages():
            self.client.send(status)

    def _on_delivered(self, message: Outgoing) -> None:
        if (final := read_final(message)) is not None:
            self._manager.delivered(final)

    def _on_undeliverable(self, message: Outgoing, _: str) -> None:
        if (final := read_final(message)) is not None:
            self._manager.publisher.undeliverable(final)

    def _limits(self) -> RequestLimits:
        info = self._service.info
        return RequestLimits(models=frozenset(info["models"]), max_tokens=info["max_tokens"])

    def _sender(self, topic: str, payload: bytes | bytearray, client: str | None) -> str:
        """Return the client whose share of the inbox a message uses."""
        level, _, last = topic.rpartition("/")
        if last == "status":
            return level.rpartition("/")[2]
        named = client or read_names(payload).get("client")
        return named if isinstance(named, str) else ANONYMOUS

    def _refuse_unread(self, message: Incoming | None) -> None:
        """Refuse a message of QoS 1 that found no room in the inbox; None: one of QoS 0."""
        if message is None:
            self._counters.count("unread_messages")
            return
        match self._topics.parse(message.topic):
            case RequestTopic(kind):
                refused = self._parser.refuse(kind, message, INBOX_FULL)
                self._manager.refusals.send(refused.ticket, refused.error)
        self._journal.then(message.acknowledge)

    def _receive(self, message: Incoming) -> None:
        # The broker keeps a request until it is journalled here or claimed elsewhere.
        try:
            if self._accept(message):
                return
            self._handle(message)
        except Exception as error:  # noqa: BLE001 -- a bad message must not block the next ones
            logger.warning("message dropped: topic=%.200s cause=%s", message.topic, cause_of(error))
        self._journal.then(message.acknowledge)

    def _accept(self, message: Incoming) -> bool:
        """Whether the message is a valid request, which is acknowledged when a target has it."""
        match self._topics.parse(message.topic):
            case RequestTopic(kind) if not message.retain:
                parsed = self._parser.read(kind, message, self._limits())
                if isinstance(parsed, RequestRecord):
                    self._manager.accept(parsed, message.acknowledge)
                    return True
                self._manager.refusals.send(parsed.ticket, parsed.error, parsed.cause)
        return False

    def _handle(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case StatusTopic() if message.payload in (OFFLINE, DRAINING) and (
                message.payload != self._status
            ):
                # The late will of a former connection, or the status of another target.
                self._send_status()
            case RequestTopic() | CancelTopic() if message.retain:
                if self._log_throttle.is_due("retained", loop_time()):
                    logger.warning("retained message ignored: topic=%s", message.topic)
            case ClientStatusTopic(client_id) if not message.retain:
                if message.payload == OFFLINE:
                    self._disconnected.disconnected(client_id)
                else:
                    self._disconnected.connected(client_id)
            case CancelTopic(request_id):
                self._manager.cancel(request_id, message.client or _client_of(message.payload))


def _client_of(payload: bytes) -> str | None:
    """Return the client that a cancel message names in a JSON body; None if it names none."""
    try:
        client = read_object(payload).get("client")
    except RequestError:
        return None
    return client if isinstance(client, str) else None
