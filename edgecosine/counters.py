"""Counts of refusals, losses and repetitions since the node started, for status reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

Event = Literal[
    "refused", "failed", "repeated", "reconnected", "taken_over", "lost_links", "dropped_messages",
    "undeliverable", "stalls", "late_drafts", "stale_drafts", "floods", "asked_again", "restarts",
    "resumed", "unread_messages", "unsaid_refusals",
]  # fmt: skip
"""Requests refused or failed (by error code) and repeated; broker reconnections; requests taken
over from another target; links that ended; messages dropped by the outbox, or refused by the
broker; engines that stopped answering; drafts that came after their deadline, and drafts given up
for a newer round; peers that sent more messages than requested; draft requests repeated because
they lacked tokens; starts of this node after its first one, as far as its journal knows, and
requests that went on after one; messages of QoS 0 that were dropped for their sender's others, and
refusals that found no room."""


class Counters:
    """Counts by event, and by kind where an event has kinds of a known, small number."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Event, str]] = Counter()

    def __repr__(self) -> str:
        return f"<Counters {self.view()}>"

    def count(self, event: Event, kind: str = "", by: int = 1) -> None:
        """Add to the count of an event."""
        self._counts[event, kind] += by

    def view(self) -> dict[str, int | Mapping[str, int]]:
        """Plain JSON values: a number by event, or numbers by kind. Zero counts are omitted."""
        view: dict[str, int | Mapping[str, int]] = {}
        for event in sorted({event for event, _ in self._counts}):
            kinds = {kind: n for (each, kind), n in self._counts.items() if each == event and n}
            if kinds:
                view[event] = kinds[""] if set(kinds) == {""} else dict(sorted(kinds.items()))
        return view
