"""This target's membership of the cluster, by retained statuses, leases and echoes on MQTT.

A connection is joined once all retained messages have arrived, which an echo to ourselves shows,
and once every target of a retained status has renewed it or had time to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgecosine.errors import ConfigError
from edgecosine.node.cluster_queue.actions import QueueAction
from edgecosine.node.cluster_queue.leases import CALL_S, RENEW_S, Leases
from edgecosine.node.cluster_queue.state import QueueState
from edgecosine.protocol.api.claim_messages import (
    Echo,
    MembershipState,
    MembershipStatus,
    StatusRequest,
    inbox_note,
    membership_notice,
    other_model,
    read_membership,
)
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing
from edgecosine.protocol.api.topics import Topics

ECHO_TIMEOUT_S: Final = 5.0
"""Silence of the broker after which no final is sent, since others may have taken our requests.
Shorter than any broker's keepalive plus the grace period after it."""
TICK_S: Final = 0.25
_RENEW_TICKS: Final = round(RENEW_S / TICK_S)


class TargetMembership:
    """Publishes our status with `send`, and passes the actions that other statuses cause to
    `apply`."""

    def __init__(
        self,
        state: QueueState,
        topics: Topics,
        *,
        send: Callable[[Outgoing], None],
        apply: Callable[[Sequence[QueueAction]], None],
    ) -> None:
        self._state, self._topics, self._send, self._apply = state, topics, send, apply
        self._leases = Leases()
        self.joined = asyncio.Event()
        """Set once a connection has been joined for the first time."""
        self.conflict: asyncio.Future[ConfigError] | None = None
        """Its result is the reason why this target cannot serve together with another one."""
        self._is_remembered = False
        """Whether the broker retained a status of ours in this connection."""
        self._num_echoes = 0
        self._echoed_at = 0.0
        self._join_until: float | None = None
        """Until when targets may renew a retained status; None before the echo."""
        self._num_ticks = 0

    def __repr__(self) -> str:
        return f"<TargetMembership [{len(self._state.members.others)} others]>"

    @property
    def active_peers(self) -> list[str]:
        """The other targets that are connected and not silent."""
        return [node for node in self._state.members.others if self._leases.is_fresh(node)]

    @property
    def is_connection_alive(self) -> bool:
        """Whether a message came from the broker lately, as far as that matters."""
        is_fresh = time.monotonic() - self._echoed_at < ECHO_TIMEOUT_S
        return is_fresh or self._state.members.is_alone

    def set_status(self, state: MembershipState) -> None:
        """Change our status and publish it. A draining target does not become ready again."""
        if self._state.us.state in ("draining", state):
            return
        actions = self._state.set_status(state, time.monotonic())
        self.send_status()
        self._apply(actions)
        if state == "draining":
            self._request_status(self._state.members.others)
            self._leases.expect_renewal(time.monotonic())

    def connect_messages(self) -> tuple[Outgoing, ...]:
        """Start a connection. Retained messages arrive before the echo that this returns."""
        self._state.on_connected(time.monotonic())
        self._leases.reset()
        self._join_until = None
        self._num_echoes += 1
        if not self.joined.is_set():
            return (self._echo(),)
        return (self._echo(), self.status_message())

    def on_status(self, node: str, message: Incoming) -> None:
        """Handle a published status, which may be our own."""
        status = self._read_status(node, message.payload)
        if status is None or status.node != node:
            return
        us, now = self._state.us, time.monotonic()
        if node == us.node:
            self._on_own_status(status, is_retained=message.retain)
        elif status.state in ("left", "lost"):
            self._leases.end(node)
            if status.identity == us.identity:
                self._apply(self._state.on_status(status, now))
        elif message.retain:
            self._leases.add_retained(status)
            self._request_status([node])
        elif status.identity != us.identity:
            self._on_other_model(status)
        elif self._leases.renew(status, now):
            self._apply(self._state.on_status(status, now))
        self._join_if_ready()

    def on_note(self, note: Echo | StatusRequest) -> None:
        """Handle an echo or a status request."""
        match note:
            case Echo(session, number) if session == self._state.us.session:
                self._echoed_at = time.monotonic()
                if number == self._num_echoes and not self._state.members.is_joined:
                    self._join_until = self._join_until or time.monotonic() + CALL_S
                    self._join_if_ready()
            case StatusRequest():
                if self.joined.is_set():
                    self.send_status()

    def on_tick(self, *, is_connected: bool) -> None:
        """Renew our status and expire those of the others; called every `TICK_S` seconds."""
        members, now = self._state.members, time.monotonic()
        self._num_ticks += 1
        if is_connected:
            self._renew(is_due=self._num_ticks % _RENEW_TICKS == 0)
        self._join_if_ready()
        if members.is_joined and not members.is_alone:
            for status in self._leases.expire(now):
                self._apply(self._state.on_status(status, now))
            self._apply(self._state.on_tick(now))

    def send_status(self) -> None:
        """Publish our status."""
        self._send(self.status_message())

    def status_message(self, state: MembershipState | None = None) -> Outgoing:
        """Return the publication of our status, or of another state of ours."""
        us = self._state.us
        return membership_notice(self._topics, msgspec.structs.replace(us, state=state or us.state))

    def _read_status(self, node: str, payload: bytes) -> MembershipStatus | None:
        if payload:
            return read_membership(payload)
        # `edgecosine forget` clears the status of a target that is gone.
        us = self._state.us
        return MembershipStatus(node, "", us.identity, us.model, 0.0, "left")

    def _on_own_status(self, status: MembershipStatus, *, is_retained: bool) -> None:
        us = self._state.us
        self._is_remembered |= is_retained
        is_outdated = status.state != us.state or status.session != us.session
        if is_outdated and self.joined.is_set():
            # The last will of a former connection, or a status of a former process.
            self.send_status()

    def _on_other_model(self, status: MembershipStatus) -> None:
        """Handle a target whose answers differ from ours; the one that started later ends."""
        us = self._state.us
        was_before_us = self._leases.is_unconfirmed(status.node) and not self.joined.is_set()
        self._leases.end(status.node)
        is_later = (us.since, us.node) < (status.since, status.node)
        if self.conflict is None or self.conflict.done() or (is_later and not was_before_us):
            return
        self.conflict.set_result(other_model(self._topics.cluster, status.node, status.model))

    def _join_if_ready(self) -> None:
        has_conflict = self.conflict is not None and self.conflict.done()
        if self._join_until is None or has_conflict:
            return
        if not self._leases.all_confirmed and time.monotonic() < self._join_until:
            return
        self._join_until = None
        for lost in self._leases.give_up():
            if lost.identity == self._state.us.identity:
                self._apply(self._state.on_status(lost, time.monotonic()))
        self._join()

    def _join(self) -> None:
        is_first = not self.joined.is_set()
        is_remembered, self._is_remembered = self._is_remembered, False
        self._apply(self._state.join(time.monotonic(), is_remembered=is_remembered))
        self.joined.set()
        if is_first:
            # Only now: a target that has to end because of a conflict was never visible.
            self.send_status()

    def _renew(self, *, is_due: bool) -> None:
        """Publish our status before it expires, and an echo while one is needed."""
        members = self._state.members
        if not members.is_joined or (is_due and not members.is_alone):
            self._send(self._echo())
        if members.is_joined and is_due:
            self.send_status()

    def _request_status(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self._send(inbox_note(self._topics, node, StatusRequest(self._state.us.node)))

    def _echo(self) -> Outgoing:
        us = self._state.us
        return inbox_note(self._topics, us.node, Echo(us.session, self._num_echoes))
