"""The drafters that are compared for one session, so that a round does not examine all of them."""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.node.target.draft_client import DraftClient

COMPARED_FOR = 16
"""Rounds after which they are chosen again, or earlier if the number of links changes."""


class ComparedDrafters:
    """A shortlist of the linked drafters that can read the sequence."""

    def __init__(
        self, draft_client: DraftClient, statistics: Statistics, request: RequestState
    ) -> None:
        self._draft_client, self._statistics, self._request = draft_client, statistics, request
        self._names: Sequence[str] = ()
        self._num_links = self._num_rounds = 0

    def __repr__(self) -> str:
        return f"<ComparedDrafters {len(self._names)} of {self._num_links}>"

    def choose(self) -> Sequence[str]:
        """The node ids of the shortlist, which is at most COMPARED_FOR calls old."""
        links = self._draft_client.links
        if self._num_rounds % COMPARED_FOR == 0 or len(links) != self._num_links:
            names = self._statistics.shortlist(self._request, links)
            self._names = self._draft_client.able(names)
            self._num_links, self._num_rounds = len(links), 0
        self._num_rounds += 1
        return self._names
