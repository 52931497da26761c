"""Drafts that were requested and are not there yet, as plain state: replies complete them in the
link's callback, so that a draft costs no task, and all drafts of a wait share one timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

import msgspec

from edgecosine.balance.plan import Plan
from edgecosine.engine.base import VerificationResult
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.links.pending_requests import Reply
from edgecosine.protocol.wire.messages import PackedTree


class AskedDraft(msgspec.Struct, eq=False):
    """One drafter's draft for a plan, after the sequence and `trunk`; with `ahead`, after the
    endpoints of the tree that the target verifies."""

    node_id: str
    plan: Plan
    asked_s: float
    trunk: Sequence[int] = ()
    ahead: PackedTree | None = None
    prefix_len: int = 0
    """Tokens before the draft, of the latest request for it."""
    num_requests: int = 0
    """More than one if the drafter lacked tokens."""
    reply: asyncio.Future[Reply] | None = None
    is_over: bool = False
    tree: DrafterTree | None = None
    """None while it is awaited, and for a draft that is late or lost with its link."""
    error: Exception | None = None
    """The exception that the handling of its reply raised, if any."""

    @property
    def is_ahead(self) -> bool:
        """Whether the target verifies a tree before it."""
        return self.ahead is not None


class DraftWait:
    """Lets one session wait for its drafts."""

    def __init__(self) -> None:
        self._is_enough: Callable[[], bool] | None = None
        self._woken: asyncio.Future[None] | None = None

    async def all_of(self, drafts: Collection[AskedDraft], within_s: float) -> None:
        """Wait at most `within_s` seconds until none of these drafts is awaited any more."""
        await self._until(lambda: all(draft.is_over for draft in drafts), within_s)

    async def any_of(self, drafts: Collection[AskedDraft], within_s: float) -> None:
        """Wait at most `within_s` seconds for drafts that may be on their way, unless one is there
        already."""
        if drafts:
            await self._until(lambda: any(draft.is_over for draft in drafts), within_s)

    async def any_or(
        self, verification: asyncio.Future[VerificationResult], drafts: Collection[AskedDraft]
    ) -> None:
        """Wait for the first of these drafts or for the verification result."""
        if not drafts:
            return
        verification.add_done_callback(lambda _: self.ended())
        await self._until(
            lambda: verification.done() or any(draft.is_over for draft in drafts), math.inf
        )

    async def _until(self, is_enough: Callable[[], bool], within_s: float) -> None:
        if within_s <= 0.0 or is_enough():
            return
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._woken, self._is_enough = woken, is_enough
        timer = None if math.isinf(within_s) else loop.call_later(within_s, _wake, woken)
        try:
            await woken
        finally:
            self._woken = None
            if timer is not None:
                timer.cancel()

    def ended(self) -> None:
        """Wake the waiting session if the draft or result that has ended is enough."""
        if self._woken is not None and self._is_enough is not None and self._is_enough():
            _wake(self._woken)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
