"""A connection to one peer: passes bytes and messages between a socket and the wire protocol.

A link owns the timers and the pending requests. The reader decodes bytes; the handshake decides
which message may arrive when. A link ends once, for one reason, and its pending requests fail then;
its socket stays open for the linger time so that a refusal arrives.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter  # uvloop's own clock counts whole milliseconds
from typing import Any, Final

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
from edgecosine.node.links.link_reader import LinkReader
from edgecosine.node.links.link_socket import LinkSocket
from edgecosine.node.links.pending_requests import PendingRequests, Reply
from edgecosine.protocol.wire.codec import tag_of
from edgecosine.protocol.wire.framing import MAX_ANSWER_BYTES, MAX_FRAME_BYTES
from edgecosine.protocol.wire.handshake import Handshake, HandshakeState
from edgecosine.protocol.wire.messages import (
    MAX_REASON_CHARACTERS,
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Judgement,
    JudgeRequest,
    Leave,
    OutOfStep,
    Ping,
    Pong,
    Refuse,
    Release,
    Reveal,
    Work,
)
from edgecosine.protocol.wire.vocabulary import Vocabulary

MAX_UNSENT_BYTES: Final = 4 * MAX_FRAME_BYTES
"""A link is dropped when more than this is unsent because the peer does not read."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links of a node have in common.

    on_request  receives a target's work; the reply is sent by `link.send`
    """

    hello: Hello
    vocabulary: Vocabulary
    on_request: Callable[[Link, Work], None]
    timing: Timing = DEFAULT_TIMING
    max_unsent_bytes: int = MAX_UNSENT_BYTES
    guard: LinkPolicy = field(default_factory=LinkPolicy)


class Link(asyncio.Protocol):
    """A connection to one peer, dialled by this node or by the peer.

    closed      resolves with the reason when the link has ended
    gone        resolves when its socket is closed as well
    is_leaving  whether the peer has announced that it accepts no more work
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
        self._settings, self._timing = settings, settings.timing
        self._on_ready, self._on_request = on_ready, settings.on_request
        self._handshake = Handshake(settings.hello, settings.vocabulary, self._objection)
        self._heartbeat = Heartbeat()
        self._pending = PendingRequests()
        self._socket = LinkSocket(self._timing.linger_s)
        self.gone = self._socket.gone
        self._reader = LinkReader(self._socket, process=self._process, fail=self._on_protocol_error)
        self._deadline: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._was_ready: asyncio.Future[bool] = self._loop.create_future()

    def __repr__(self) -> str:
        peer = self._handshake.peer
        name = peer.node_id if peer else "?"
        state = "closed" if self.closed.done() else self._handshake.state.name.lower()
        return f"<Link {name} {state} | {len(self._pending)} pending, {self.num_late} late>"

    @property
    def peer(self) -> Hello:
        """The peer's greeting; the link must be ready."""
        assert self._handshake.peer is not None, "the peer of a link that is not ready"
        return self._handshake.peer

    @property
    def max_context(self) -> int:
        """Tokens of the longest sequence of the peer; 0 if it sent none."""
        return self.peer.max_context

    @property
    def is_ready(self) -> bool:
        """Whether work may be sent."""
        return self._handshake.is_ready and not self.closed.done()

    @property
    def host(self) -> str:
        """Numeric address of the peer."""
        return self._socket.host

    @property
    def is_within_machine(self) -> bool:
        """Whether the peer runs on this machine."""
        return self._socket.is_within_machine

    @property
    def peercert(self) -> Mapping[str, Any] | None:
        """The peer's certificate in the format of the standard library; None on a plain link."""
        return self._socket.peercert

    @property
    def num_late(self) -> int:
        """Replies that arrived after their request had been given up."""
        return self._pending.num_late

    @property
    def rtt_s(self) -> float:
        """Smoothed round-trip time in seconds, measured by the heartbeat."""
        return self._heartbeat.rtt_s

    @property
    def jitter_s(self) -> float:
        """Smoothed deviation of the round-trip time in seconds."""
        return self._heartbeat.jitter_s

    def ask(self, request: DraftRequest | JudgeRequest | Reveal) -> asyncio.Future[Reply]:
        """Send a request; returns a future of its reply, which the caller cancels when it is late.
        It fails by LinkLost when the link ends.

        Raises what `send` raises.
        """
        reply = self._pending.open(request)
        try:
            self.send(request)
        except LinkError:
            reply.cancel()
            raise
        self._reader.budget.earn()
        return reply

    async def judge(self, request: JudgeRequest | Reveal) -> Judgement | OutOfStep:
        """The reply of a member of a committee; as `ask`."""
        reply = await self.ask(request)
        assert not isinstance(reply, Draft), "the handshake lets members send no draft"
        return reply

    def send(self, message: AnyMessage) -> None:
        """Send a request, or a reply to one.

        Raises LinkLost when the link has ended, LocalProtocolError when this node's role or the
        handshake does not allow the message.
        """
        if self.closed.done():
            raise LinkLost(str(self.closed.result()))
        if not self._handshake.is_ready or type(message) not in self._handshake.sendable:
            raise LocalProtocolError(
                f"a {self._settings.hello.role} sends no {tag_of(message)} "
                f"{self._handshake.state.value}"
            )
        self._socket.write(message)

    def close(self, reason: str) -> None:
        """End the link and send the reason to the peer."""
        self._end(LinkLost(f"closed here: {reason}"), Refuse(reason[:MAX_REASON_CHARACTERS]))

    def put_out(self, error: RemoteProtocolError) -> None:
        """End the link because the peer's values are invalid; the peer gets the reason."""
        self._on_protocol_error(error)

    def abort(self, reason: str | LinkError) -> None:
        """End the link and close its socket at once; the peer receives no reason."""
        self._finish(LinkLost(reason) if isinstance(reason, str) else reason)
        self._socket.drop()

    async def wait_ready(self) -> None:
        """Wait until the handshake has succeeded.

        Raises the LinkError that ended the link otherwise.
        """
        if not await asyncio.shield(self._was_ready):
            raise self.closed.result()

    async def wait_closed(self) -> LinkError:
        """Wait until the socket is closed; returns the reason why the link ended."""
        await asyncio.shield(self.gone)
        return self.closed.result()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket.connected(transport, self._settings.max_unsent_bytes)
        if self.closed.done():
            self._socket.drop()
            return
        patience_s = self._timing.handshake_s
        late = LinkLost(f"the peer did not finish the handshake within {patience_s:g} s")
        self._deadline = self._loop.call_later(patience_s, self._end, late)
        self._socket.write(self._settings.hello)

    def data_received(self, data: bytes) -> None:
        if self.closed.done():
            return
        self._heartbeat.received()
        self._reader.feed(data)

    def eof_received(self) -> None:
        self._end(self._handshake.ending or self._lost("the peer closed the link"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._end(PeerRefused(explain(exc)))
        why = f": {exc}" if exc else ""
        self._end(self._handshake.ending or self._lost(f"the connection ended{why}"))
        self._cancel_deadline()
        self._socket.disconnected()

    def pause_writing(self) -> None:
        limit = self._settings.max_unsent_bytes
        self.abort(f"the peer does not read: more than {limit} bytes are unsent")

    def _on_protocol_error(self, error: RemoteProtocolError) -> None:
        refusal = Refuse(str(error)[:MAX_REASON_CHARACTERS])
        if isinstance(error, PeerFlooded):
            self._finish(error)
            self._socket.write(refusal)
            self._socket.pause_reading()  # no further byte of a flood is read
            self._socket.drop_later()
        else:
            self._end(error, refusal)

    def _process(self, message: AnyMessage) -> None:
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
            case Draft() | Judgement() | OutOfStep():
                self._pending.settle(message)
            case DraftRequest() | JudgeRequest() | Reveal():
                self._reader.budget.earn(2)  # the request, and the release that may follow
                self._on_request(self, message)
            case Release():
                self._on_request(self, message)
            case Leave():
                self.is_leaving = True
            case Ping(number):
                self._socket.write(Pong(number))
            case Pong(number):
                self._heartbeat.record_pong(number, perf_counter())
            case Hello() | Refuse():
                pass  # processed by the handshake

    def _enter(self, state: HandshakeState) -> None:
        if state is HandshakeState.AGREED:
            self._beat()
        elif state is HandshakeState.READY:
            self._cancel_deadline()
            is_drafter = self.peer.role == "drafter"
            self._reader.limit_frames(MAX_ANSWER_BYTES if is_drafter else MAX_FRAME_BYTES)
            self._was_ready.set_result(True)
            if self._on_ready is not None:
                self._on_ready(self)
        elif state is HandshakeState.REFUSING:
            # The peer's own refusal names the difference, so it gets time to arrive.
            refusal, ending = self._handshake.refusal, self._handshake.ending
            assert refusal is not None
            assert ending is not None
            self._socket.write(refusal)
            self._cancel_deadline()
            self._deadline = self._loop.call_later(self._timing.linger_s, self._end, ending)
        elif state is HandshakeState.CLOSED:
            assert self._handshake.ending is not None
            self._end(self._handshake.ending)

    def _beat(self) -> None:
        self._reader.budget.beat()
        if self._heartbeat.beat() >= self._timing.silent_heartbeats:
            silence_s = self._timing.silent_heartbeats * self._timing.heartbeat_s
            self.abort(f"the peer was silent for {silence_s:g} s")
            return
        if self._heartbeat.num_unanswered >= self._timing.unanswered_heartbeats:
            num_beats = self._timing.unanswered_heartbeats
            self.abort(f"the peer sends, but has answered no ping for {num_beats} heartbeats")
            return
        self._socket.write(Ping(self._heartbeat.next_ping(perf_counter())))
        self._beating = self._loop.call_later(self._timing.heartbeat_s, self._beat)

    def _end(self, reason: LinkError, last_message: Refuse | None = None) -> None:
        if self.closed.done():
            return
        self._finish(reason)
        if last_message is not None and self._socket.is_connected:
            self._socket.write(last_message)
        self._socket.finish()

    def _lost(self, what: str) -> LinkLost:
        """The error for a peer that ended the link without a reason."""
        if not self.is_dialled or self._handshake.state is not HandshakeState.GREETING:
            return LinkLost(what)
        # In TLS 1.3 the dialler's handshake succeeds before the listener has checked it.
        if self._settings.guard.trust is not None:
            return LinkLost(f"{what} before the handshake: it may reject this node's certificate")
        return LinkLost(f"{what} before the handshake: it may accept TLS only; {ADVICE}")

    def _finish(self, reason: LinkError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if not self._was_ready.done():
            self._was_ready.set_result(False)
        self._pending.fail(LinkLost(str(reason)))
        self._cancel_deadline()
        if self._beating is not None:
            self._beating.cancel()
        self._reader.stop()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
