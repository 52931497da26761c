"""The door of a cluster: takes requests from MQTT, has them answered, and answers.

The only place where load is refused. Every accepted request gets exactly one final message: text,
error, cancelled or expired. A lost broker ends no session; what it missed is sent when it is back.
It owns the cluster's `status` and that topic's will; a node's own will is its
`NodeStatusPublisher`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from edgecosine import __version__
from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.errors import RequestError
from edgecosine.log_throttle import LogThrottle
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.inbox import Inbox
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.node.cluster_queue.coordinator import QueueCoordinator
from edgecosine.node.durability.interface import KEEP_ANSWERS_S, Journal, NoJournal
from edgecosine.node.durability.recovery import NO_PAST, RecoveredState
from edgecosine.node.gateway.disconnected_clients import GRACE_S, DisconnectedClients
from edgecosine.node.gateway.request_manager import RequestManager, model_of
from edgecosine.node.gateway.service import Service
from edgecosine.node.runtime.failures import CROWDED, cause_of
from edgecosine.protocol.api.json_fields import read_names, read_object
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.openai import RequestLimits
from edgecosine.protocol.api.parse_request import ANONYMOUS, RequestParser
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
_LOOK_S = 1.0


class Gateway:
    """Between MQTT and a service. `run` until cancelled; it leaves cleanly."""

    def __init__(
        self,
        service: Service,
        *,
        broker: BrokerAddress,
        cluster: str,
        node_id: str,
        max_queued: int = 64,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
        absence_s: float = GRACE_S,
        journal: Journal | None = None,
        past: RecoveredState = NO_PAST,
        keep_answers_s: float = KEEP_ANSWERS_S,
        identity: str = "",
        client_ids: ClientIds | None = None,
    ) -> None:
        client_ids = client_ids or ClientIds()
        self._service = service
        self._counters = counters or Counters()
        self._topics = Topics(cluster)
        self._node_id = node_id
        self._max_queued = max_queued
        self.admission = AdmissionControl(num_places=service.max_sessions, max_queued=max_queued)
        self._journal = journal or NoJournal()
        self.sharing = QueueCoordinator(
            broker=broker,
            topics=self._topics,
            node_id=node_id,
            identity=identity,
            model=model_of(service),
            wall_clock_s=wall_clock_s,
            counters=counters,
            client_ids=client_ids,
        )
        self._reception = RequestManager(
            service,
            topics=self._topics,
            send=self._send,
            admission=self.admission,
            wall_clock_s=wall_clock_s,
            counters=self._counters,
            journal=self._journal,
            past=past,
            keep_answers_s=keep_answers_s,
            sharing=self.sharing,
        )
        self._absences = DisconnectedClients(self._reception.cancel_all, absence_s)
        self._status = ONLINE
        self._told_info: Outgoing | None = None
        self._complaints = LogThrottle()
        self._intake = RequestParser(
            self._topics,
            max_request_bytes=max_request_bytes,
            draw_id=lambda: secrets.token_hex(8),
            draw_seed=lambda: secrets.randbits(64),
        )
        name = f"edgecosine-{cluster}-{node_id}-gateway"
        self._courier = ReconnectingClient(
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
            announce=self._announcement,
            farewell=self._farewell,
            counters=counters,
            delivered=self._reception.delivered,
            refused=self._reception.undeliverable,
            session_s=math.ceil(keep_answers_s) if self._journal.is_durable else 0,
            inbox=Inbox(
                max_messages=MAX_UNREAD,
                max_bytes=MAX_UNREAD_BYTES,
                lane=self._sender,
                on_drop=self._turn_away,
            ),
        )

    def __repr__(self) -> str:
        return f"<Gateway {self._reception!r} {self._courier!r}>"

    async def run(self) -> NoReturn:
        """Serve until cancelled; then every request at work gets its final message."""
        async with self.sharing.open(), asyncio.TaskGroup() as group:
            group.create_task(self._serve(), name=f"{self._node_id}.gateway.courier")
            group.create_task(self._journal.run(), name=f"{self._node_id}.journal")
            group.create_task(self._renew(), name=f"{self._node_id}.gateway.status")
            # Here and not in a task beside, so that last words come before the courier leaves.
            try:
                await self._reception.run()
            finally:
                self._absences.close()
        raise AssertionError("a gateway ends by an exception")

    async def _serve(self) -> NoReturn:
        """Hear requests once it is known what other targets have done and do."""
        await self.sharing.joined()
        await self._courier.run()

    async def _renew(self) -> NoReturn:
        """Say that we are there before that lapses, and who the targets are when that changes."""
        number = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            number += 1
            if not self._courier.is_connected:
                continue
            if (info := self._info()) != self._told_info:
                self._courier.send(info)
                self._told_info = info
            if number % round(RENEW_ONLINE_S / _LOOK_S) == 0:
                for status in self._announced_status():
                    self._courier.send(status)

    async def connected(self) -> None:
        """Wait until the broker is there and requests are heard."""
        await self._courier.connected()

    async def drain(self) -> None:
        """Let nobody else in, say so, and wait until who is in was served.

        Where another target takes new requests, the cluster's door stays open.
        """
        self._status = DRAINING
        self.sharing.say("draining")
        self._reception.drain()
        for status in self._announced_status():
            self._courier.send(status)
        await self._reception.idle()

    def heed(self, reason: str | None) -> None:
        """Refuse new requests for this reason; None: take them."""
        self.sharing.say("ready" if reason is None else "unavailable")
        self._reception.heed(reason)

    @property
    def is_congested(self) -> bool:
        """Whether the broker takes less than we have to say."""
        return self._courier.is_congested

    def _info(self) -> Outgoing:
        targets = sorted({self._node_id, *self.sharing.book.others})
        return info_notice(
            self._topics,
            version=__version__,
            info={**self._service.info, "targets": targets},
            limits={
                "max_sessions": self._service.max_sessions,
                "max_queued": self._max_queued,
                "max_queued_per_client": self.admission.max_queued_per_client,
                "max_request_bytes": self._intake.max_request_bytes,
            },
        )

    def _announcement(self) -> Sequence[Outgoing]:
        self._told_info = self._info()
        return (self._told_info, *self._announced_status())

    def _announced_status(self) -> Sequence[Outgoing]:
        """The cluster's status, unless it is another target's to tell."""
        if self._status == DRAINING and self.sharing.has_stand_in:
            return ()
        return (status_notice(self._topics, self._status),)

    def _farewell(self) -> Sequence[Outgoing]:
        return () if self.sharing.others else (status_notice(self._topics, OFFLINE),)

    def _send(self, message: Outgoing) -> None:
        self._courier.send(message)

    def _limits(self) -> RequestLimits:
        info = self._service.info
        return RequestLimits(models=frozenset(info["models"]), max_tokens=info["max_tokens"])

    def _sender(self, topic: str, payload: bytes | bytearray, client: str | None) -> str:
        """Whose turn it takes to read a message."""
        level, _, last = topic.rpartition("/")
        if last == "status":
            return level.rpartition("/")[2]
        named = client or read_names(payload).get("client")
        return named if isinstance(named, str) else ANONYMOUS

    def _turn_away(self, message: Incoming | None) -> None:
        """What found no room to wait is not read; of QoS 1 it is refused."""
        if message is None:
            self._counters.count("unread_messages")
            return
        match self._topics.parse(message.topic):
            case RequestTopic(kind):
                reading = self._intake.refuse(kind, message, CROWDED)
                self._reception.refuse(reading.ticket, reading.error)
        self._journal.then(message.acknowledge)

    def _receive(self, message: Incoming) -> None:
        # A request that was let in is the broker's until it is in the journal.
        try:
            if self._take(message):
                return
            self._handle(message)
        except Exception as error:  # noqa: BLE001 -- no message may keep the others from being read
            logger.warning("message dropped: topic=%.200s cause=%s", message.topic, cause_of(error))
        self._journal.then(message.acknowledge)

    def _take(self, message: Incoming) -> bool:
        """Whether it is a request, which is acknowledged when somebody has taken it."""
        match self._topics.parse(message.topic):
            case RequestTopic(kind) if not message.retain:
                reading = self._intake.read(kind, message, self._limits())
                if isinstance(reading, RequestRecord):
                    self._reception.take(reading, message.acknowledge)
                    return True
                self._reception.refuse(reading.ticket, reading.error, reading.cause)
                self._journal.then(message.acknowledge)
                return True
        return False

    def _handle(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case StatusTopic() if message.payload in (OFFLINE, DRAINING) and (
                message.payload != self._status
            ):
                # The will of a connection that died late, or the word of another target.
                for status in self._announced_status():
                    self._courier.send(status)
            case RequestTopic() | CancelTopic() if message.retain:
                if self._complaints.is_due("retained", asyncio.get_running_loop().time()):
                    logger.warning("retained message ignored: topic=%s", message.topic)
            case ClientStatusTopic(client_id) if not message.retain:
                if message.payload == OFFLINE:
                    self._absences.left(client_id)
                else:
                    self._absences.came(client_id)
            case CancelTopic(request_id):
                self._reception.cancel(request_id, message.client or _client_of(message.payload))


def _client_of(payload: bytes) -> str | None:
    """Whose request is to be cancelled, where the canceller says so in a JSON body."""
    try:
        client = read_object(payload).get("client")
    except RequestError:
        return None
    return client if isinstance(client, str) else None
