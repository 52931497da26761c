"""A target among the targets of its cluster: keeps its `QueueState` by what they say on MQTT.

It has a connection of its own, whose will says that the target is lost. Alone it says nothing about
requests, so one target pays for none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NoReturn

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
from edgecosine.node.cluster_queue.leases import CALL_S, RENEW_S, Leases
from edgecosine.node.cluster_queue.single_target import RequestStarter
from edgecosine.node.cluster_queue.state import QueueState
from edgecosine.node.runtime.failures import DUPLICATE
from edgecosine.protocol.api.claim_messages import (
    Claim,
    ClaimAck,
    Echo,
    KnownRequest,
    MembershipStatus,
    StandingState,
    StatusRequest,
    claim_notice,
    clearance,
    inbox_note,
    known_notice,
    other_model,
    read_note,
    read_standing,
    read_work,
    standing_notice,
)
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import ReplyAddress
from edgecosine.protocol.api.topics import ClaimTopic, InboxTopic, MembershipTopic, Topics
from edgecosine.security.client_ids import ClientIds

logger = logging.getLogger(__name__)

LEASE_S: Final = 5.0
"""Without a word of the broker for so long, others may have taken what is ours, so no final goes
out. Shorter than what any broker waits before it takes us for lost, with the grace after it."""
_TICK_S: Final = 0.25
_RENEW_TICKS: Final = round(RENEW_S / _TICK_S)


class QueueCoordinator:
    """One target's part in the cluster's queue. `open` while requests are at work.

    `open` raises ConfigError when another target serves another model.
    """

    def __init__(
        self,
        *,
        broker: BrokerAddress,
        topics: Topics,
        node_id: str,
        identity: str,
        model: str,
        wall_clock_s: Callable[[], float] = time.time,
        counters: Counters | None = None,
        client_ids: ClientIds | None = None,
    ) -> None:
        self._topics, self._wall_clock_s = topics, wall_clock_s
        self._counters = counters or Counters()
        us = MembershipStatus(
            node_id, secrets.token_hex(8), identity, model, wall_clock_s(), "ready"
        )  # fmt: skip
        self._desk: RequestStarter | None = None
        self.book = QueueState(us, knows=self._knows)
        self._held: dict[str, Callable[[], None]] = {}
        """Finals that wait until they are sure to be ours."""
        self._open: dict[str, Callable[[], None]] = {}
        """Whom to tell when a request is taken that nobody has yet."""
        self._joined = asyncio.Event()
        self._stranger: asyncio.Future[ConfigError] | None = None
        self._is_remembered = False
        self._num_echoes = 0
        self._heard_at = 0.0
        self._leases = Leases()
        self._join_until: float | None = None
        """Until when those may answer that we called; None until all is heard that was held."""
        name = f"edgecosine-{topics.cluster}-{node_id}-sharing"
        self._courier = ReconnectingClient(
            broker,
            name=name,
            client_id=(client_ids or ClientIds()).of(name),
            receive=self._receive,
            filters=(topics.standing("+"), topics.inbox(node_id), topics.work("+", "+")),
            will=self._standing("lost"),
            announce=self._arrive,
            farewell=lambda: (self._standing("left"),),
            lost=self._lose,
            refused=self._give_up_claim,
            counters=counters,
        )

    def __repr__(self) -> str:
        return f"<QueueCoordinator {self.book!r} {self._courier!r}>"

    def serve(self, desk: RequestStarter) -> None:
        """Who answers the requests that fall to us."""
        self._desk = desk

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be one of the targets; the last to leave of all that this target runs."""
        self._stranger = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(work, name=f"{self.book.us.node}.sharing")
                    for work in (self._courier.run(), self._keep_time(), self._refuse())
                ]
                try:
                    yield
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            self._stranger.cancel()

    async def joined(self) -> None:
        """Wait until all is known that the broker holds."""
        await self._joined.wait()

    @property
    def has_stand_in(self) -> bool:
        """Whether another target takes new requests."""
        return self.book.has_stand_in

    @property
    def others(self) -> list[str]:
        """The targets that are there beside us, and were heard lately."""
        return [node for node in self.book.others if self._leases.is_heard(node)]

    def say(self, state: StandingState) -> None:
        """Tell the other targets how we stand. Who drains is not ready again."""
        if self.book.us.state not in ("draining", state):
            effects = self.book.say(state, _now())
            self._courier.send(self._standing(state))
            self._do(effects)
            if state == "draining":
                self._call(self.book.others)
                self._leases.call(_now())

    def hear(self, ticket: ReplyAddress, request: Request, taken: Callable[[], None]) -> None:
        """A new request came; `taken` is called when it is started here or claimed elsewhere.

        Raises RequestError when another one of that name is about to be started.
        """
        if self.book.is_another(ticket):
            raise DUPLICATE.error()
        self._do(self.book.hear(self._claim(ticket, request, 0.0), _now()))
        if self.book.is_open(ticket.key):
            self._open[ticket.key] = taken
        else:
            taken()

    def resume(self, ticket: ReplyAddress, request: Request, age_s: float) -> None:
        """A request of our former life."""
        self._do(self.book.resume(self._claim(ticket, request, age_s), _now()))

    def repeat(self, ticket: ReplyAddress) -> None:
        """A request came that was answered here."""
        self._do(self.book.repeat(ticket))

    def withdraw(self, ticket: ReplyAddress) -> None:
        """A request was refused here."""
        self._do(self.book.withdraw(ticket))

    def owe(self, key: str) -> None:
        """Our former life has answered a request, and the broker may not have the answer."""
        self.book.owe(key)

    def give(self, key: str, send: Callable[[], None]) -> None:
        """Send a final message once no other target can have sent another one."""
        if self._is_sure(key):
            send()
        else:
            self._held[key] = send

    def is_held(self, key: str) -> bool:
        """Whether a final message waits here."""
        return key in self._held

    def delivered(self, key: str) -> None:
        """The broker has the final message."""
        self._do(self.book.finish(key))

    def _claim(self, ticket: ReplyAddress, request: Request, age_s: float) -> Claim:
        us = self.book.us
        return Claim(us.node, us.session, ticket, request, self._wall_clock_s() - age_s)

    def _knows(self, key: str) -> bool:
        return self._desk is not None and key not in self._held and self._desk.knows(key)

    def _is_sure(self, key: str) -> bool:
        is_heard = self.book.is_alone or _now() - self._heard_at < LEASE_S
        return is_heard and self.book.is_ours(key)

    def _do(self, effects: Sequence[QueueAction]) -> None:
        for effect in effects:
            match effect:
                case StartRequest(claim):
                    assert self._desk is not None
                    if claim.taken_from:
                        self._counters.count("taken_over")
                    self._desk.start(claim)
                case AbandonRequest(key):
                    assert self._desk is not None
                    self._held.pop(key, None)
                    self._desk.give_up(key)
                case _:
                    self._courier.send(self._message(effect))
        if self._open:
            for key in [key for key in self._open if not self.book.is_open(key)]:
                self._open.pop(key)()

    def _message(
        self, effect: PublishClaim | ClearClaim | PublishKnown | AcknowledgeClaim
    ) -> Outgoing:
        node = self.book.us.node
        match effect:
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
                self._take_work(topic.key, message)
            case MembershipTopic(node):
                self._take_standing(node, message)
            case InboxTopic():
                self._take_note(message.payload)
        self._send_held()

    def _take_work(self, key: str, message: Incoming) -> None:
        if not message.payload:
            self._do(self.book.cleared(key, _now()))
            return
        match read_work(message.payload):
            case Claim() as claim if claim.key == key:
                self._do(self.book.claimed(claim, _now(), is_retained=message.retain))
            case KnownRequest(node, digest):
                self._do(self.book.known(key, node, digest, _now()))

    def _take_standing(self, node: str, message: Incoming) -> None:
        us = self.book.us
        # What was cleared is of a target that somebody has forgotten.
        standing = (
            read_standing(message.payload)
            if message.payload
            else MembershipStatus(node, "", us.identity, us.model, 0.0, "left")
        )
        if standing is None or standing.node != node:
            return
        if node == us.node:
            self._take_our_own(standing, is_retained=message.retain)
        elif standing.state in ("left", "lost"):
            self._leases.end(node)
            if standing.identity == us.identity:
                self._do(self.book.stands(standing, _now()))
        elif message.retain:
            self._leases.find(standing)
            self._call([node])
        elif standing.identity != us.identity:
            self._meet_stranger(standing)
        elif self._leases.renew(standing, _now()):
            self._do(self.book.stands(standing, _now()))
        self._join_if_sure()

    def _take_our_own(self, standing: MembershipStatus, *, is_retained: bool) -> None:
        us = self.book.us
        self._is_remembered |= is_retained
        is_old = standing.state != us.state or standing.session != us.session
        if is_old and self._joined.is_set():
            # The will of a dead connection, or a former life.
            self._courier.send(self._standing(us.state))

    def _meet_stranger(self, standing: MembershipStatus) -> None:
        """Of two targets that would not say the same, the later one goes."""
        us = self.book.us
        was_there = self._leases.was_found(standing.node) and not self._joined.is_set()
        self._leases.end(standing.node)
        is_first = (us.since, us.node) < (standing.since, standing.node)
        if self._stranger is None or (is_first and not was_there):
            return
        if not self._stranger.done():
            error = other_model(self._topics.cluster, standing.node, standing.model)
            self._stranger.set_result(error)

    def _take_note(self, payload: bytes) -> None:
        match read_note(payload):
            case ClaimAck(node, key, generation):
                self._do(self.book.consented(node, key, generation))
            case Echo(session, number) if session == self.book.us.session:
                self._heard_at = _now()
                if number == self._num_echoes and not self.book.is_joined:
                    self._join_until = self._join_until or _now() + CALL_S
                    self._join_if_sure()
            case StatusRequest():
                if self._joined.is_set():
                    self._courier.send(self._standing(self.book.us.state))

    def _call(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self._courier.send(inbox_note(self._topics, node, StatusRequest(self.book.us.node)))

    def _join_if_sure(self) -> None:
        """Join once all that the broker holds is known, and who of the others is still there."""
        if self._join_until is None or self._has_lost_to_a_stranger:
            return
        if not self._leases.is_sure and _now() < self._join_until:
            return
        self._join_until = None
        for ghost in self._leases.give_up():
            if ghost.identity == self.book.us.identity:
                self._do(self.book.stands(ghost, _now()))
        self._join()

    @property
    def _has_lost_to_a_stranger(self) -> bool:
        return self._stranger is not None and self._stranger.done()

    def _join(self) -> None:
        is_first = not self._joined.is_set()
        is_remembered, self._is_remembered = self._is_remembered, False
        self._do(self.book.join(_now(), is_remembered=is_remembered))
        self._joined.set()
        if is_first:
            # Not before: a target that is to go has not been seen by those who stay.
            self._courier.send(self._standing(self.book.us.state))

    def _arrive(self) -> tuple[Outgoing, ...]:
        """A connection stands: what the broker holds comes before our own echo."""
        self.book.arrive(_now())
        self._leases.start()
        self._join_until = None
        self._num_echoes += 1
        if not self._joined.is_set():
            return (self._echo(),)
        return (self._echo(), self._standing(self.book.us.state))

    def _give_up_claim(self, message: Outgoing, _: str) -> None:
        """The broker takes no claim of that length, so the others learn only that there is one."""
        claim = read_work(message.payload)
        if isinstance(claim, Claim) and claim.node == self.book.us.node:
            self._courier.send(known_notice(self._topics, claim.ticket, claim.node))

    def _lose(self) -> None:
        self.book.lose(_now())

    def _echo(self) -> Outgoing:
        us = self.book.us
        return inbox_note(self._topics, us.node, Echo(us.session, self._num_echoes))

    def _standing(self, state: StandingState) -> Outgoing:
        return standing_notice(self._topics, msgspec.structs.replace(self.book.us, state=state))

    def _send_held(self) -> None:
        for key in [key for key in self._held if self._is_sure(key)]:
            self._held.pop(key)()

    async def _keep_time(self) -> NoReturn:
        number = 0
        while True:
            await asyncio.sleep(_TICK_S)
            number += 1
            if self._courier.is_connected:
                self._renew(is_due=number % _RENEW_TICKS == 0)
            self._join_if_sure()
            if self.book.is_joined and not self.book.is_alone:
                for standing in self._leases.silent(_now()):
                    self._do(self.book.stands(standing, _now()))
                self._do(self.book.tick(_now()))
            self._send_held()

    def _renew(self, *, is_due: bool) -> None:
        """Say what lapses where it is not said again."""
        if not self.book.is_joined or (is_due and not self.book.is_alone):
            self._courier.send(self._echo())
        if self.book.is_joined and is_due:
            self._courier.send(self._standing(self.book.us.state))

    async def _refuse(self) -> NoReturn:
        assert self._stranger is not None
        raise await self._stranger


def _now() -> float:
    # Not the loop's time, which does not pass within a turn in which the process is stopped.
    return time.monotonic()
