"""One peer: a thin shell that carries bytes between a socket and the protocol room.

It owns the socket, the timers and the asks that wait for an answer. Which message may come when
is the handshake's knowledge, what bytes mean the codec's. A link ends once, for one reason, and
then nobody waits for it any more; only its socket lingers a moment so that a refusal arrives.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter  # uvloop's own clock counts whole milliseconds
from typing import Any, Final, cast

from edgecosine.errors import (
    LinkError,
    LinkLost,
    LocalProtocolError,
    PeerFlooded,
    PeerRefused,
    RemoteProtocolError,
)
from edgecosine.node.links.heartbeat import DEFAULT_TIMING, Heartbeat, Timing
from edgecosine.node.links.link_policy import ADVICE, LinkPolicy, explain
from edgecosine.node.links.peer_budget import LoopShare, PeerBudget
from edgecosine.node.links.pending_requests import PendingRequests
from edgecosine.protocol.wire.codec import decode, encode, tag_of
from edgecosine.protocol.wire.framing import MAX_ANSWER_BYTES, MAX_FRAME_BYTES, FrameBuffer, frame
from edgecosine.protocol.wire.handshake import WORK_BY_SENDER, Handshake, HandshakeState
from edgecosine.protocol.wire.messages import (
    MAX_REASON_CHARACTERS,
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Leave,
    OutOfStep,
    Ping,
    Pong,
    Refuse,
    Release,
)
from edgecosine.protocol.wire.vocabulary import Vocabulary

MAX_UNSENT_BYTES: Final = 4 * MAX_FRAME_BYTES
"""A peer that leaves more than this unread is dropped."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links of a node have in common.

    on_request  takes a target's DraftRequest or Release; the answer goes back by `link.send`
    """

    hello: Hello
    vocabulary: Vocabulary
    on_request: Callable[[Link, DraftRequest | Release], None]
    timing: Timing = DEFAULT_TIMING
    max_unsent_bytes: int = MAX_UNSENT_BYTES
    guard: LinkPolicy = field(default_factory=LinkPolicy)


class Link(asyncio.Protocol):
    """Our connection to one peer, dialled by us or by the peer.

    closed  resolves once, with the reason, when the link is of no more use
    gone    resolves when its socket is closed, too
    """

    def __init__(
        self,
        *,
        settings: LinkSettings,
        is_dialled: bool,
        on_ready: Callable[[Link], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[LinkError] = self._loop.create_future()
        self.is_dialled = is_dialled
        self.is_leaving = False
        """Whether the peer takes no more work."""
        self._settings, self._timing = settings, settings.timing
        self._on_ready, self._on_request = on_ready, settings.on_request
        self._may_send = WORK_BY_SENDER[settings.hello.role]
        self._handshake = Handshake(settings.hello, settings.vocabulary, self._objection)
        self._buffer = FrameBuffer()
        self._allowance, self._share = PeerBudget(), LoopShare()
        self._resuming: asyncio.TimerHandle | None = None
        """Set while the socket is left unread."""
        self._heartbeat = Heartbeat()
        self._asks = PendingRequests()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._was_ready: asyncio.Future[bool] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        peer = self._handshake.peer
        name = peer.node_id if peer else "?"
        state = "closed" if self.closed.done() else self._handshake.state.name.lower()
        return f"<Link {name} {state} | {len(self._asks)} asks, {self.num_late} late>"

    @property
    def peer(self) -> Hello:
        """Who is at the other end; known once the link is ready."""
        assert self._handshake.peer is not None, "the peer of a link that is not ready"
        return self._handshake.peer

    @property
    def max_context(self) -> int:
        """Tokens that the peer's sequences may have; 0 where it did not say."""
        return self.peer.max_context

    @property
    def is_ready(self) -> bool:
        """Whether work may be sent."""
        return self._handshake.state is HandshakeState.READY and not self.closed.done()

    @property
    def host(self) -> str:
        """Numeric address of the other end."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else "?"

    @property
    def peercert(self) -> Mapping[str, Any] | None:
        """The peer's certificate, as the standard library gives it; None on a plain link."""
        if self._transport is None:
            return None
        return cast(Mapping[str, Any] | None, self._transport.get_extra_info("peercert"))

    @property
    def num_late(self) -> int:
        """Answers that came after their asker had left."""
        return self._asks.num_late

    @property
    def rtt_s(self) -> float:
        """Smoothed round-trip time in seconds, measured by the heartbeat."""
        return self._heartbeat.rtt_s

    @property
    def jitter_s(self) -> float:
        """Smoothed deviation of the round-trip time in seconds."""
        return self._heartbeat.jitter_s

    async def ask(self, request: DraftRequest) -> Draft | OutOfStep:
        """Send the request and wait for its answer; the caller sets the deadline.

        Raises LinkLost when the link ends first.
        """
        with self._asks.waiting(request) as answer:
            self.send(request)
            self._allowance.earn()
            return await answer

    def send(self, message: AnyMessage) -> None:
        """Send work, or an answer to work.

        Raises LinkLost when the link has ended, LocalProtocolError when it is not for us to send.
        """
        if self.closed.done():
            raise LinkLost(str(self.closed.result()))
        if type(message) not in self._may_send or self._handshake.state is not HandshakeState.READY:
            raise LocalProtocolError(
                f"a {self._settings.hello.role} sends no {tag_of(message)} "
                f"{self._handshake.state.value}"
            )
        self._write(message)

    def close(self, reason: str) -> None:
        """End the link and tell the peer why."""
        self._end(LinkLost(f"closed here: {reason}"), Refuse(reason[:MAX_REASON_CHARACTERS]))

    def abort(self, reason: str | LinkError) -> None:
        """End the link and its socket at once, without a word to the peer."""
        self._finish(LinkLost(reason) if isinstance(reason, str) else reason)
        self._drop_socket()

    async def wait_ready(self) -> None:
        """Wait until both sides agree.

        Raises the reason, a LinkError, when they do not.
        """
        if not await asyncio.shield(self._was_ready):
            raise self.closed.result()

    async def wait_closed(self) -> LinkError:
        """Wait until the socket is gone; gives the reason why the link ended."""
        await asyncio.shield(self.gone)
        return self.closed.result()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self.closed.done():
            self._transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=self._settings.max_unsent_bytes)
        patience_s = self._timing.handshake_s
        late = LinkLost(f"the peer did not finish its greeting within {patience_s:g} s")
        self._deadline = self._loop.call_later(patience_s, self._end, late)
        self._write(self._settings.hello)

    def data_received(self, data: bytes) -> None:
        if self.closed.done():
            return
        self._heartbeat.heard()
        self._buffer.feed(data)
        self._read()

    def eof_received(self) -> None:
        self._end(self._handshake.ending or self._lost("the peer closed the link"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._end(PeerRefused(explain(exc)))
        why = f": {exc}" if exc else ""
        self._end(self._handshake.ending or self._lost(f"the connection ended{why}"))
        self._cancel_deadline()
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        limit = self._settings.max_unsent_bytes
        self.abort(f"the peer does not read: more than {limit} bytes are unsent")

    def _read(self) -> None:
        """Take the messages that have come, until they cost too much."""
        began_s = perf_counter()
        try:
            while not self.closed.done() and self._resuming is None:
                payload = self._buffer.next_frame()
                if payload is None:
                    return
                if not self._allowance.spend():
                    self._cut_off()
                    return
                self._take(decode(payload))
                ended_s = perf_counter()
                pause_s = self._share.spend(ended_s - began_s, ended_s)
                began_s = ended_s
                if pause_s and not self.closed.done():
                    self._may_read(is_allowed=False)
                    self._resuming = self._loop.call_later(pause_s, self._resume)
        except RemoteProtocolError as error:
            self._end(error, Refuse(str(error)[:MAX_REASON_CHARACTERS]))

    def _resume(self) -> None:
        self._resuming = None
        self._may_read(is_allowed=True)
        self._read()

    def _may_read(self, *, is_allowed: bool) -> None:
        """Go on reading, or leave the socket unread, so that the peer has to wait."""
        if self._transport is None or self._transport.is_closing():
            return
        if is_allowed:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _cut_off(self) -> None:
        """End the link to a peer that floods it, and read no byte more."""
        reason = PeerFlooded("the peer sent more messages than it was asked for")
        self._finish(reason)
        self._buffer.clear()
        self._write(Refuse(str(reason)))
        self._may_read(is_allowed=False)
        self._deadline = self._loop.call_later(self._timing.linger_s, self._drop_socket)

    def _take(self, message: AnyMessage) -> None:
        before = self._handshake.state
        state = self._handshake.receive(message)
        if state is not HandshakeState.REFUSING:
            self._dispatch(message)
        if state is not before and not self.closed.done():
            self._enter(state)

    def _objection(self, hello: Hello) -> str | None:
        return self._settings.guard.objection(self.peercert, hello)

    def _dispatch(self, message: AnyMessage) -> None:
        match message:
            case Draft() | OutOfStep():
                self._asks.settle(message)
            case DraftRequest():
                self._allowance.earn(2)  # itself, and the release that may follow
                self._on_request(self, message)
            case Release():
                self._on_request(self, message)
            case Leave():
                self.is_leaving = True
            case Ping(number):
                self._write(Pong(number))
            case Pong(number):
                self._heartbeat.take_pong(number, perf_counter())
            case Hello() | Refuse():
                pass  # the handshake has taken them

    def _enter(self, state: HandshakeState) -> None:
        if state is HandshakeState.AGREED:
            self._beat()
        elif state is HandshakeState.READY:
            self._cancel_deadline()
            is_drafter = self.peer.role == "drafter"
            self._buffer.max_frame_bytes = MAX_ANSWER_BYTES if is_drafter else MAX_FRAME_BYTES
            self._was_ready.set_result(True)
            if self._on_ready is not None:
                self._on_ready(self)
        elif state is HandshakeState.REFUSING:
            # the peer's own refusal names the difference, so it is given a moment to arrive
            assert self._handshake.refusal is not None
            assert self._handshake.ending is not None
            self._write(self._handshake.refusal)
            self._cancel_deadline()
            self._deadline = self._loop.call_later(
                self._timing.linger_s, self._end, self._handshake.ending
            )
        elif state is HandshakeState.CLOSED:
            assert self._handshake.ending is not None
            self._end(self._handshake.ending)

    def _beat(self) -> None:
        self._allowance.beat()
        if self._heartbeat.beat() >= self._timing.silent_heartbeats:
            silence_s = self._timing.silent_heartbeats * self._timing.heartbeat_s
            self.abort(f"the peer was silent for {silence_s:g} s")
            return
        if self._heartbeat.num_unanswered >= self._timing.unanswered_heartbeats:
            num_beats = self._timing.unanswered_heartbeats
            self.abort(f"the peer sends, but has answered no ping for {num_beats} heartbeats")
            return
        self._write(Ping(self._heartbeat.next_ping(perf_counter())))
        self._beating = self._loop.call_later(self._timing.heartbeat_s, self._beat)

    def _write(self, message: AnyMessage) -> None:
        assert self._transport is not None
        self._transport.write(frame(encode(message)))

    def _end(self, reason: LinkError, farewell: Refuse | None = None) -> None:
        if self.closed.done():
            return
        self._finish(reason)
        if farewell is not None and self._transport is not None:
            self._write(farewell)
        self._linger()

    def _lost(self, what: str) -> LinkLost:
        """How the link ended, by somebody who gave no reason."""
        if not self.is_dialled or self._handshake.state is not HandshakeState.GREETING:
            return LinkLost(what)
        # In TLS 1.3 a dialler's own handshake succeeds before the listener has looked at it.
        if self._settings.guard.trust is not None:
            return LinkLost(f"{what} before its greeting: it may not accept our certificate")
        return LinkLost(f"{what} before its greeting: it may speak TLS only; {ADVICE}")

    def _finish(self, reason: LinkError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if not self._was_ready.done():
            self._was_ready.set_result(False)
        self._asks.fail(LinkLost(str(reason)))
        self._cancel_deadline()
        if self._beating is not None:
            self._beating.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
            self._may_read(is_allowed=True)  # bytes left unread would cost the peer our farewell

    def _linger(self) -> None:
        # closing a socket with unread bytes resets it, and the reset may overtake a refusal
        if self._transport is None or self._transport.is_closing():
            return
        self._deadline = self._loop.call_later(self._timing.linger_s, self._drop_socket)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _drop_socket(self) -> None:
        self._cancel_deadline()
        if self._transport is not None:
            self._transport.abort()
        elif not self.gone.done():
            self.gone.set_result(None)
