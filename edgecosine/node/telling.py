"""What a reception tells of its requests: nothing before all that it follows from is journalled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgecosine.node.desk import Alone
from edgecosine.node.ledger import Entry
from edgecosine.node.records import Journal
from edgecosine.node.sharing import Sharing
from edgecosine.protocol.answers import Piece
from edgecosine.protocol.intake import Ticket
from edgecosine.protocol.publication import MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.replies import State, piece_message, state_message
from edgecosine.protocol.topics import Topics

_AT_WORK: frozenset[State] = frozenset(("accepted", "queued", "running"))


class Telling:
    """States, parts of streams and final messages, which are owed until the broker has them."""

    def __init__(
        self,
        *,
        topics: Topics,
        publish: Callable[[Outgoing], None],
        journal: Journal,
        sharing: Sharing | Alone,
    ) -> None:
        self._topics, self._publish, self._journal = topics, publish, journal
        self.stall: str | None = None
        """Why requests at work do not move now."""
        self._sharing = sharing
        self._owed: dict[Outgoing, str] = {}
        """Final messages that the broker may not have, and their requests' keys."""

    def __repr__(self) -> str:
        return f"<Telling [{len(self._owed)} finals owed]>"

    def send(self, message: Outgoing) -> None:
        """Publish what follows from all that was journalled, once it is."""
        self._journal.then(partial(self._publish, message))

    def owe(self, key: str, final: Outgoing) -> None:
        """Send a final message, in the next life of this process, too, until the broker has it."""
        self._sharing.give(key, partial(self._give, key, final))

    def delivered(self, message: Outgoing) -> None:
        """The broker has a message."""
        key = self._owed.pop(message, None)
        if key is not None:
            self._journal.deliver(key)
            self._sharing.delivered(key)

    def _give(self, key: str, final: Outgoing) -> None:
        self._owed[final] = key
        self.send(final)

    def state(self, entry: Entry) -> None:
        """How far a request is."""
        stall = self.stall if entry.state in _AT_WORK else None
        self.send(state_message(self._topics, entry.ticket, entry.state, stall))

    def part(self, entry: Entry, choice: int, text: str) -> None:
        """More text of one choice, for those who read along."""
        if not entry.ticket.wants_stream:
            return
        before = entry.texts.get(choice, "")
        entry.texts[choice] = before + text
        number = choice if entry.request.n > 1 else None
        self._piece(entry.ticket, Piece(len(before), text, is_last=False, choice=number))

    def parts_again(self, entry: Entry) -> None:
        """All text so far, for parts may be lost with the asker's connection, or the broker."""
        texts, entry.texts = entry.texts, {}
        for choice, text in texts.items():
            self.part(entry, choice, text)

    def last_part(self, entry: Entry) -> None:
        """The stream has ended."""
        if entry.ticket.wants_stream:
            num_chars = sum(map(len, entry.texts.values()))
            self._piece(entry.ticket, Piece(num_chars, "", is_last=True))

    def _piece(self, ticket: Ticket, piece: Piece) -> None:
        message = piece_message(self._topics, ticket, piece)
        # Where all that a former process said is too long for one part, the final has it.
        if len(message.payload) <= MAX_PAYLOAD_BYTES:
            self.send(message)
