"""The door of a cluster: takes requests from MQTT, has them answered, and answers.

The only place where load is refused. Every accepted request gets exactly one final message: text,
error, cancelled or expired. A lost broker ends no session; what it missed is sent when it is back.
It owns the cluster's `status` and that topic's will; a node's own will is its `Presence`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from edgecosine import __version__
from edgecosine.errors import EdgecosineError, RequestError
from edgecosine.node.courier import Courier
from edgecosine.node.ledger import Entry, Finished, Ledger
from edgecosine.node.mqtt import BrokerAddress
from edgecosine.node.service import Service
from edgecosine.protocol.answers import Piece
from edgecosine.protocol.fields import read_object
from edgecosine.protocol.intake import Accepted, Intake, Ticket
from edgecosine.protocol.notices import (
    OFFLINE,
    ONLINE,
    info_notice,
    node_state_notice,
    status_notice,
)
from edgecosine.protocol.openai import Limits
from edgecosine.protocol.publication import Incoming, Outgoing
from edgecosine.protocol.replies import (
    State,
    answer_message,
    error_message,
    piece_message,
    state_message,
)
from edgecosine.protocol.request import Answer, Delta, NodeState, Started
from edgecosine.protocol.topics import CancelTopic, RequestTopic, StatusTopic, Topics

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 256 << 10
MAX_REPLY_BYTES = 960 << 10
"""Below the packet limit of the embedded broker, which hangs up on more."""
MAX_NODES = 256

_CANCELLED = RequestError("the request was cancelled", code="cancelled", status=499)
_EXPIRED = RequestError("the request's deadline has passed", code="deadline_exceeded", status=408)
_INTERNAL = RequestError("the cluster failed at this request", code="internal_error", status=500)
_LEAVING = RequestError("the cluster is shutting down", code="shutting_down", status=503)
_TOO_LONG = RequestError("the answer is too long for MQTT", code="answer_too_large", status=500)


class Gateway:
    """Between MQTT and a service. `run` until cancelled; it leaves cleanly."""

    def __init__(  # noqa: PLR0913 -- capabilities
        self,
        service: Service,
        *,
        broker: BrokerAddress,
        cluster: str,
        node_id: str,
        max_queued: int = 64,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._topics = Topics(cluster)
        self._node_id = node_id
        self._wall_clock_s = wall_clock_s
        self._max_queued = max_queued
        self._ledger = Ledger(max_sessions=service.max_sessions, max_queued=max_queued)
        self._slots = asyncio.Semaphore(service.max_sessions)
        self._scopes: dict[Entry, asyncio.Timeout] = {}
        self._is_leaving = False
        self._sessions: asyncio.TaskGroup | None = None
        self._node_states: dict[str, Outgoing] = {}
        self._intake = Intake(
            self._topics,
            max_request_bytes=max_request_bytes,
            draw_id=lambda: secrets.token_hex(8),
            draw_seed=lambda: secrets.randbits(64),
        )
        self._courier = Courier(
            broker,
            name=f"edgecosine-{cluster}-{node_id}-gateway",
            receive=self._receive,
            filters=(self._topics.requests, self._topics.cancels, self._topics.status),
            will=status_notice(self._topics, OFFLINE),
            announce=self._announcement,
            farewell=lambda: (status_notice(self._topics, OFFLINE),),
        )

    def __repr__(self) -> str:
        return f"<Gateway {self._ledger!r} {self._courier!r}>"

    async def run(self) -> NoReturn:
        """Serve until cancelled; then every request at work gets its final message."""
        async with asyncio.TaskGroup() as outer:
            outer.create_task(self._courier.run(), name=f"{self._node_id}.gateway.courier")
            # Sessions end before the courier does, so that their last words are still sent.
            async with asyncio.TaskGroup() as self._sessions:
                try:
                    await asyncio.Event().wait()
                finally:
                    self._is_leaving = True
        raise AssertionError("a gateway ends by an exception")

    async def connected(self) -> None:
        """Wait until the broker is there and requests are heard."""
        await self._courier.connected()

    def publish_state(self, node_id: str, state: NodeState) -> None:
        """Tell what a node is and how it does; retained, and told again to a broker that forgot."""
        notice = node_state_notice(self._topics, node_id, state)
        if node_id in self._node_states or len(self._node_states) < MAX_NODES:
            self._node_states[node_id] = notice
        self._courier.send(notice)

    def _announcement(self) -> Sequence[Outgoing]:
        info = info_notice(
            self._topics,
            version=__version__,
            info=self._service.info,
            limits={
                "max_sessions": self._service.max_sessions,
                "max_queued": self._max_queued,
                "max_request_bytes": self._intake.max_request_bytes,
            },
        )
        return (info, *self._node_states.values(), status_notice(self._topics, ONLINE))

    def _limits(self) -> Limits:
        info = self._service.info
        return Limits(models=frozenset(info["models"]), max_tokens=info["max_tokens"])

    def _receive(self, message: Incoming) -> None:
        match self._topics.parse(message.topic):
            case StatusTopic() if message.payload == OFFLINE:
                # The will of a connection that died late, or another gateway's farewell.
                self._courier.send(status_notice(self._topics, ONLINE))
            case RequestTopic() | CancelTopic() if message.retain:
                logger.warning("retained message ignored topic=%s", message.topic)
            case RequestTopic(kind):
                reading = self._intake.read(kind, message, self._limits())
                if isinstance(reading, Accepted):
                    self._take(reading)
                else:
                    self._refuse(reading.ticket, reading.error)
            case CancelTopic(request_id):
                self._cancel(request_id, message)

    def _take(self, reading: Accepted) -> None:
        """Answer what was asked before, start what is new, refuse what there is no room for."""
        ticket = reading.ticket
        try:
            known = self._ledger.recall(ticket)
            if known is not None:
                self._repeat(ticket, known)
                return
            if self._is_leaving:
                raise _LEAVING
            entry = self._ledger.admit(ticket, reading.request, self._now())
        except RequestError as error:
            self._refuse(ticket, error)
            return
        self._send_state(entry)
        if self._sessions is None:
            raise RuntimeError("a request came before the gateway ran")
        self._sessions.create_task(
            self._serve(entry), name=f"{self._node_id}.session.{ticket.key}"
        )

    def _repeat(self, ticket: Ticket, known: Entry | Finished) -> None:
        """The same request came again, maybe from a new connection: the newest address counts."""
        if isinstance(known, Finished):
            self._courier.send(
                replace(known.final, topic=ticket.reply_topic, correlation=ticket.correlation)
            )
            return
        known.ticket = ticket
        self._send_state(known)

    def _refuse(self, ticket: Ticket, error: RequestError) -> None:
        logger.info("request refused request=%s code=%s", ticket.key, error.code)
        self._courier.send(error_message(ticket, error))

    def _cancel(self, request_id: str, message: Incoming) -> None:
        entry = self._ledger.find(request_id, message.client or _client_of(message.payload))
        if entry is None:
            return
        scope = self._scopes.get(entry)
        if scope is None:
            entry.is_cancelled = True
        elif not scope.expired():
            entry.is_cancelled = True
            scope.reschedule(self._now())

    async def _serve(self, entry: Entry) -> None:
        """The life of one request at the door. Cancellation by its asker is an early deadline."""
        try:
            async with asyncio.timeout_at(_when(entry)) as scope:
                self._scopes[entry] = scope
                if entry.is_cancelled:
                    scope.reschedule(self._now())
                self._advance(entry, "queued")
                async with self._slots:
                    answer = await self._answer(entry)
        except TimeoutError:
            if not scope.expired():
                self._fail(entry, "failed", _INTERNAL)
                raise
            if entry.is_cancelled:
                self._fail(entry, "cancelled", _CANCELLED)
            else:
                self._fail(entry, "expired", _EXPIRED)
        except RequestError as error:
            self._fail(entry, "failed", error)
        except EdgecosineError as error:
            logger.warning("request failed request=%s error=%r", entry.ticket.key, error)
            self._fail(entry, "failed", _INTERNAL)
        except asyncio.CancelledError:
            self._fail(entry, "failed", _LEAVING)
            raise
        except BaseException:
            self._fail(entry, "failed", _INTERNAL)
            raise
        else:
            self._finish(
                entry,
                "done",
                answer_message(
                    entry.ticket, entry.request, answer, created_s=int(self._wall_clock_s())
                ),
            )

    async def _answer(self, entry: Entry) -> Answer:
        """Have a request answered, and pass the parts on when its asker wants them."""
        async with contextlib.aclosing(self._service.answer(entry.request)) as progress:
            async for step in progress:
                match step:
                    case Started():
                        self._advance(entry, "running")
                    case Delta():
                        self._advance(entry, "running")
                        self._send_piece(entry, step.text, is_last=False)
                    case Answer():
                        return step
        raise RuntimeError("the service ended without an answer")

    def _fail(self, entry: Entry, state: State, error: RequestError) -> None:
        self._finish(entry, state, error_message(entry.ticket, error))

    def _finish(self, entry: Entry, state: State, final: Outgoing) -> None:
        if len(final.payload) > MAX_REPLY_BYTES:
            state, final = "failed", error_message(entry.ticket, _TOO_LONG)
        self._scopes.pop(entry, None)
        self._ledger.finish(entry, state, final, self._now())
        self._send_piece(entry, "", is_last=True)
        self._courier.send(final)
        self._send_state(entry)
        logger.info("request finished request=%s state=%s", entry.ticket.key, state)

    def _advance(self, entry: Entry, state: State) -> None:
        if self._ledger.advance(entry, state):
            self._send_state(entry)

    def _send_state(self, entry: Entry) -> None:
        self._courier.send(state_message(self._topics, entry.ticket, entry.state))

    def _send_piece(self, entry: Entry, text: str, *, is_last: bool) -> None:
        if entry.ticket.wants_stream:
            piece = Piece(entry.num_pieces, text, is_last)
            entry.num_pieces += 1
            self._courier.send(piece_message(self._topics, entry.ticket, piece))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _when(entry: Entry) -> float | None:
    """The moment, in the loop's time, at which the answer is worth nothing."""
    deadline_s = entry.request.deadline_s
    return None if math.isinf(deadline_s) else entry.since + deadline_s


def _client_of(payload: bytes) -> str | None:
    """Whose request is to be cancelled, where the canceller says so in a JSON body."""
    try:
        client = read_object(payload).get("client")
    except RequestError:
        return None
    return client if isinstance(client, str) else None
