"""Connects a target to the queue that it shares with the other targets of its cluster, by MQTT.

It has a connection of its own, whose last will reports that the target is lost. A lone target
publishes nothing about its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn

import msgspec

from edgecosine.counters import Counters
from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient
from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    AcknowledgeClaim,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    QueueAction,
    StartRequest,
)
from edgecosine.node.cluster_queue.membership import TICK_S, TargetMembership
from edgecosine.node.cluster_queue.state import QueueState
from edgecosine.protocol.api.claim_messages import (
    Claim,
    ClaimAck,
    Echo,
    KnownRequest,
    MembershipState,
    MembershipStatus,
    StatusRequest,
    claim_notice,
    clearance,
    inbox_note,
    known_notice,
    read_note,
    read_work,
)
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.replies import RequestEnd
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.topics import ClaimTopic, InboxTopic, MembershipTopic, Topics
from edgecosine.security.client_ids import ClientIds


class QueueCoordinator:
    """One target's part of the cluster's queue; implements `RequestQueue`.

    `start` is called when a request becomes ours after `claim` or `resume`, `abandon` when another
    target owns it. `has_finished` returns whether the final of a request is kept here.
    """

    def __init__(
        self,
        *,
        broker: BrokerAddress,
        topics: Topics,
        node_id: str,
        identity: str = "",
        model: str,
        counters: Counters,
        client_ids: ClientIds,
        start: Callable[[Claim], None],
        abandon: Callable[[str], None],
        has_finished: Callable[[str], bool],
    ) -> None:
        self._topics, self._counters = topics, counters
        us = MembershipStatus(
            node_id, secrets.token_hex(8), identity, model, time.time(), "ready"
        )  # fmt: skip
        self._start_request, self._abandon_request = start, abandon
        self._held: dict[str, Callable[[], None]] = {}
        """Finals that wait until they are certainly ours to send."""
        self._untaken: dict[str, Callable[[], None]] = {}
        """Called when a request is started here or claimed elsewhere."""
        self.state = QueueState(
            us, has_finished=lambda key: key not in self._held and has_finished(key)
        )
        self._membership = TargetMembership(self.state, topics, send=self._send, apply=self._apply)
        name = f"edgecosine-{topics.cluster}-{node_id}-sharing"
        self._client = ReconnectingClient(
            broker,
            name=name,
            client_id=client_ids.of(name),
            receive=self._receive,
            filters=(topics.membership("+"), topics.inbox(node_id), topics.work("+", "+")),
            will=self._membership.status_message("lost"),
            announce=self._membership.connect_messages,
            disconnect_messages=lambda: (self._membership.status_message("left"),),
            lost=lambda: self.state.members.disconnect(time.monotonic()),
            refused=self._on_undeliverable,
            counters=counters,
        )

    def __repr__(self) -> str:
        return f"<QueueCoordinator {self.state!r} {self._client!r}>"

    def identify(self, identity: str) -> None:
        """Set the digest of all that our texts depend on; called before `open`."""
        self.state.members.us = msgspec.structs.replace(self.state.us, identity=identity)
        self._client.will = self._membership.status_message("lost")

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be a member of the cluster within the block.

        Raises ConfigError, in a group, when another target serves another model.
        """
        conflict = asyncio.get_running_loop().create_future()
        self._membership.conflict = conflict
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(work, name=f"{self.state.us.node}.queue")
                    for work in (self._client.run(), self._tick(), _raise_result(conflict))
                ]
                try:
                    yield
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            conflict.cancel()

    async def joined(self) -> None:
        """Wait until the retained claims and statuses of the other targets are known."""
        await self._membership.joined.wait()

    @property
    def has_ready_peer(self) -> bool:
        """Whether another target takes new requests."""
        return self.state.members.has_ready_peer

    @property
    def active_peers(self) -> list[str]:
        """The other targets that are connected and not silent."""
        return self._membership.active_peers

    def set_status(self, state: MembershipState) -> None:
        """Change our status. A draining target does not become ready again."""
        self._membership.set_status(state)

    def has_other(self, ticket: RequestTicket) -> bool:
        """Whether another request has this key."""
        return self.state.has_other(ticket)

    def is_chosen(self, ticket: RequestTicket) -> bool:
        """Whether this target is the one to claim a new request."""
        return self.state.is_chosen(ticket)

    def claim(self, record: RequestRecord, on_taken: Callable[[], None]) -> bool:
        """Whether a new request is ours at once.

        Otherwise `start` is called if it becomes ours, and `on_taken` as soon as a target has it.
        """
        actions = self.state.on_request(self._claim_of(record), time.monotonic())
        is_ours = any(isinstance(action, StartRequest) for action in actions)
        self._apply([action for action in actions if not isinstance(action, StartRequest)])
        if not is_ours and self.state.is_open(record.key):
            self._untaken[record.key] = on_taken
        elif not is_ours:
            on_taken()
        return is_ours

    def resume(self, record: RequestRecord) -> None:
        """Claim a request of a former process; `start` is called when it is ours."""
        self._apply(self.state.own.claim(self._claim_of(record), time.monotonic()))

    def repeat(self, ticket: RequestTicket) -> None:
        """Announce to the other targets that a repeated request was finished here."""
        self._apply(self.state.repeat(ticket))

    def withdraw(self, ticket: RequestTicket) -> None:
        """Give up a request that was refused here."""
        self._apply(self.state.withdraw(ticket))

    def expect_delivery(self, key: str) -> None:
        """Register a final of a former process that may be undelivered."""
        self.state.own.expect_delivery(key)

    def when_owned(self, key: str, end: RequestEnd, send: Callable[[], None]) -> None:
        """Call `send` once no other target can have sent another final, or can send one later."""
        self._apply(self.state.own.add_end(key, end))
        if self._is_owned(key):
            send()
        else:
            self._held[key] = send

    def is_held(self, key: str) -> bool:
        """Whether a final waits for `when_owned`."""
        return key in self._held

    def finish(self, key: str) -> None:
        """Record that the final of a request was delivered."""
        self._apply(self.state.own.finish(key))

    def _claim_of(self, record: RequestRecord) -> Claim:
        us = self.state.us
        asked_s = time.time() - record.age_s
        return Claim(us.node, us.session, record.ticket, record.request, asked_s)

    def _is_owned(self, key: str) -> bool:
        return self._membership.is_connection_alive and self.state.own.is_acknowledged(key)

    def _send(self, message: Outgoing) -> None:
        self._client.send(message)

    def _apply(self, actions: Sequence[QueueAction]) -> None:
        for action in actions:
            match action:
                case StartRequest(claim):
                    if claim.taken_from:
                        self._counters.count("taken_over")
                    self._start_request(claim)
                case AbandonRequest(key):
                    self._held.pop(key, None)
                    self._abandon_request(key)
                case _:
                    self._client.send(self._message(action))
        if self._untaken:
            for key in [key for key in self._untaken if not self.state.is_open(key)]:
                self._untaken.pop(key)()

    def _message(
        self, action: PublishClaim | ClearClaim | PublishKnown | AcknowledgeClaim
    ) -> Outgoing:
        node = self.state.us.node
        match action:
            case PublishClaim(claim):
                return claim_notice(self._topics, claim)
            case ClearClaim(key):
                return clearance(self._topics, *key.split("/", 1))
            case PublishKnown(ticket):
                return known_notice(self._topics, ticket, node)
            case AcknowledgeClaim(claim):
                note = ClaimAck(node, claim.key, claim.generation)
                return inbox_note(self._topics, claim.node, note)

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case ClaimTopic() as topic:
                self._on_claim_topic(topic.key, message)
            case MembershipTopic(node):
                self._membership.on_status(node, message)
            case InboxTopic():
                match read_note(message.payload):
                    case ClaimAck(node, key, generation):
                        self._apply(self.state.on_ack(node, key, generation))
                    case (Echo() | StatusRequest()) as note:
                        self._membership.on_note(note)
        self._send_held()

    def _on_claim_topic(self, key: str, message: Incoming) -> None:
        now = time.monotonic()
        if not message.payload:
            self._apply(self.state.on_claim_cleared(key, now))
            return
        match read_work(message.payload):
            case Claim() as claim if claim.key == key:
                self._apply(self.state.on_claim(claim, now, is_retained=message.retain))
            case KnownRequest(node, digest):
                self._apply(self.state.on_known(key, node, digest, now))

    def _on_undeliverable(self, message: Outgoing, _: str) -> None:
        """Announce a request without its claim, or its end, which is too long for the broker."""
        claim = read_work(message.payload)
        if isinstance(claim, Claim) and claim.node == self.state.us.node:
            self.state.own.refuse(claim.key)
            if claim.end is None:
                self._client.send(known_notice(self._topics, claim.ticket, claim.node))
            self._send_held()

    def _send_held(self) -> None:
        for key in [key for key in self._held if self._is_owned(key)]:
            self._held.pop(key)()

    async def _tick(self) -> NoReturn:
        while True:
            await asyncio.sleep(TICK_S)
            self._membership.on_tick(is_connected=self._client.is_connected)
            self._send_held()


async def _raise_result(conflict: asyncio.Future[ConfigError]) -> NoReturn:
    raise await conflict
