"""What a reception tells of its requests: nothing before all that it follows from is journalled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgecosine.node.cluster_queue.coordinator import QueueCoordinator
from edgecosine.node.cluster_queue.single_target import SingleTarget
from edgecosine.node.durability.interface import Journal
from edgecosine.node.gateway.request_table import RunningRequest
from edgecosine.protocol.api.answers import StreamPart
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.replies import piece_message, state_message
from edgecosine.protocol.api.request_record import RequestStatus
from edgecosine.protocol.api.topics import Topics

_AT_WORK: frozenset[RequestStatus] = frozenset(("accepted", "queued", "running"))


class ReplyPublisher:
    """States, parts of streams and final messages, which are owed until the broker has them."""

    def __init__(
        self,
        *,
        topics: Topics,
        publish: Callable[[Outgoing], None],
        journal: Journal,
        sharing: QueueCoordinator | SingleTarget,
    ) -> None:
        self._topics, self._publish, self._journal = topics, publish, journal
        self.stall: str | None = None
        """Why requests at work do not move now."""
        self._sharing = sharing
        self._unwritten: dict[str, Outgoing] = {}
        """Final messages by key that wait for the journal."""
        self._owed: dict[Outgoing, str] = {}
        """Final messages that the broker may not have, and their requests' keys."""

    def __repr__(self) -> str:
        return f"<ReplyPublisher [{len(self._owed)} finals owed]>"

    def send(self, message: Outgoing) -> None:
        """Publish what follows from all that was journalled, once it is."""
        self._journal.then(partial(self._publish, message))

    def owe(self, key: str, final: Outgoing) -> None:
        """Send a final message, in the next life of this process, too, until the broker has it."""
        self._unwritten[key] = final
        self._journal.once_kept(partial(self._written, key))

    def forget(self, key: str) -> None:
        """Another target sends the final message of a request."""
        self._unwritten.pop(key, None)

    def again(self, final: Outgoing) -> None:
        """Send a final message to who asked again."""
        self._journal.once_kept(partial(self.send, final))

    def delivered(self, message: Outgoing) -> None:
        """The broker has a message."""
        key = self._owed.pop(message, None)
        if key is not None:
            self.settle(key)

    def give_up(self, message: Outgoing) -> str | None:
        """The broker will never have a message; the request whose final it was, or None."""
        return self._owed.pop(message, None)

    def settle(self, key: str) -> None:
        """There is nothing more to deliver of a request."""
        self._journal.deliver(key)
        self._sharing.delivered(key)

    def _written(self, key: str) -> None:
        final = self._unwritten.pop(key, None)
        if final is not None:
            self._sharing.give(key, partial(self._give, key, final))

    def _give(self, key: str, final: Outgoing) -> None:
        self._owed[final] = key
        self.send(final)

    def state(self, entry: RunningRequest) -> None:
        """How far a request is."""
        is_at_work = entry.state in _AT_WORK
        stall = self.stall if is_at_work else None
        message = state_message(self._topics, entry.ticket, entry.state, stall)
        if is_at_work:
            self.send(message)
        else:
            self._journal.once_kept(partial(self.send, message))

    def part(self, entry: RunningRequest, choice: int, text: str) -> None:
        """More text of one choice, for those who read along."""
        if entry.ticket.wants_stream:
            before = entry.texts.get(choice, "")
            entry.texts[choice] = before + text
            self._send_piece(self._piece(entry, choice, len(before), text))

    def parts_again(self, entry: RunningRequest) -> None:
        """All text so far, for parts may be lost with the asker's connection, or the broker."""
        for choice, text in entry.texts.items():
            self._send_piece(self._piece(entry, choice, 0, text))

    def last_part(self, entry: RunningRequest) -> None:
        """The stream has ended."""
        if entry.ticket.wants_stream:
            self._send_piece(self._end(entry))

    def whole(self, entry: RunningRequest) -> tuple[Outgoing, ...]:
        """What a stream that has ended was, for readers who may lack some of it."""
        if not entry.ticket.wants_stream:
            return ()
        texts = [self._piece(entry, choice, 0, text) for choice, text in entry.texts.items()]
        return tuple(piece for piece in (*texts, self._end(entry)) if _fits(piece))

    def _piece(self, entry: RunningRequest, choice: int, index: int, text: str) -> Outgoing:
        number = choice if entry.request.n > 1 else None
        piece = StreamPart(index, text, is_last=False, choice=number)
        return piece_message(self._topics, entry.ticket, piece)

    def _end(self, entry: RunningRequest) -> Outgoing:
        num_chars = sum(map(len, entry.texts.values()))
        return piece_message(self._topics, entry.ticket, StreamPart(num_chars, "", is_last=True))

    def _send_piece(self, piece: Outgoing) -> None:
        if _fits(piece):
            self.send(piece)


def _fits(piece: Outgoing) -> bool:
    """Where all that a former process said is too long for one part, the final has it."""
    return len(piece.payload) <= MAX_PAYLOAD_BYTES
