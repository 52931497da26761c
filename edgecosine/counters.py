"""What was refused, lost or done again since the node began, for people who ask how it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

Event = Literal[
    "refused", "failed", "repeated", "reconnected", "taken_over", "lost_links", "dropped_messages",
    "undeliverable", "stalls", "late_drafts", "stale_drafts", "floods", "asked_again", "restarts",
    "resumed", "unread_messages", "unsaid_refusals",
]  # fmt: skip
"""Requests refused or failed (by error code) and asked twice; broker connections made anew; works
of a target that went; links that ended; messages that found no room in the outbox, or that no
broker takes; engines that stopped answering; drafts that came after their deadline, and drafts
given up for a newer round; peers that sent more messages than they were asked for; drafters asked
again because they lacked tokens; starts of this node after its first one, as far as its journal
knows, and requests that went on after one; messages of QoS 0 that were dropped for their sender's
others, and refusals that found no room."""


class Counters:
    """Counts by event, and by kind where an event has kinds of a known, small number."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Event, str]] = Counter()

    def __repr__(self) -> str:
        return f"<Counters {self.view()}>"

    def count(self, event: Event, kind: str = "", by: int = 1) -> None:
        """It has happened."""
        self._counts[event, kind] += by

    def view(self) -> dict[str, int | Mapping[str, int]]:
        """Plain JSON values: a number by event, or numbers by kind. What never was is left out."""
        view: dict[str, int | Mapping[str, int]] = {}
        for event in sorted({event for event, _ in self._counts}):
            kinds = {kind: n for (each, kind), n in self._counts.items() if each == event and n}
            if kinds:
                view[event] = kinds[""] if set(kinds) == {""} else dict(sorted(kinds.items()))
        return view
