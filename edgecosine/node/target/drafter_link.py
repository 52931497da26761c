"""The part of a link to a drafter that sessions use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from edgecosine.node.links.pending_requests import Reply
from edgecosine.protocol.wire.messages import AnyMessage, DraftRequest


class DrafterLink(Protocol):
    """A link to one drafter."""

    @property
    def max_context(self) -> int:
        """Longest sequence of the drafter in tokens; 0 if unknown."""

    @property
    def is_leaving(self) -> bool:
        """Whether the drafter accepts no more requests."""

    def ask(self, request: DraftRequest) -> asyncio.Future[Reply]:
        """A future of the reply. It fails by LinkLost when the link ends, and by TimeoutError when
        the link gives the request up.

        Raises LinkError when the link has ended.
        """

    def send(self, message: AnyMessage) -> None:
        """Raises LinkLost when the link has ended."""


DrafterLinks = Callable[[], Mapping[str, DrafterLink]]
"""Returns the drafters that are linked now, by node id."""
