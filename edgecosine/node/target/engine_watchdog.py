"""Whether the target can answer now: proven by its engine's passes, not by a heartbeat.

While there is work, passes that end are the proof. At rest a canary is: one token, drawn by the
engine after a prompt of our own. An engine that holds work and ends no pass is unavailable, and so
is one that promises equal bits and answers the canary otherwise than before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

from edgecosine.config import STALL_TIMEOUT_S
from edgecosine.engine.base import VerificationResult, VerifyWork
from edgecosine.errors import ActorStopped
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

CANARY: Final = "canary"
PERIOD_S: Final = 10.0
"""A canary is sent after so long without a pass."""
_LOOKS: Final = 20
"""Looks at the engine in the shorter of the two spans."""

logger = logging.getLogger(__name__)


class Passes(Protocol):
    """What runs the engine's passes."""

    num_passes: int

    @property
    def num_held(self) -> int:
        """Works that wait for a pass or are in one."""

    async def verify(self, work: VerifyWork) -> VerificationResult:
        """Raises ActorStopped when the engine has ended, and what it does at this work alone."""

    def release(self, key: str) -> None:
        """The work's sequence has ended."""


class EngineWatchdog:
    """Watches one engine. `on_change` is called with why it cannot answer; None: it can."""

    def __init__(
        self,
        *,
        passes: Passes,
        prompt: Sequence[int],
        is_exact: bool,
        on_change: Callable[[str | None], None],
        period_s: float = PERIOD_S,
        stall_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._passes, self._prompt, self._is_exact = passes, tuple(prompt), is_exact
        self._on_change, self._period_s, self._stall_s = on_change, period_s, stall_s
        self._told: str | None = "it has not answered yet"
        self._wrong: str | None = None
        self._first: int | None = None
        """What the canary was answered first."""
        self.num_canaries = 0
        self.num_stalls = 0

    def __repr__(self) -> str:
        return f"<EngineWatchdog {self._told or 'ready'} [{self.num_canaries} canaries]>"

    @property
    def reason(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""
        return self._told

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        pause_s = min(self._period_s, self._stall_s) / _LOOKS
        async with asyncio.TaskGroup() as group:
            canary = group.create_task(self._send_canary(), name=CANARY)
            seen = num_still = num_stuck = 0
            while True:
                await asyncio.sleep(pause_s)
                # Looks are counted, not seconds: a node that was itself stopped blames nobody.
                is_moving = self._passes.num_passes != seen
                seen = self._passes.num_passes
                num_still = 0 if is_moving else num_still + 1
                num_stuck = 0 if is_moving or not self._passes.num_held else num_stuck + 1
                if seen and num_stuck * pause_s > self._stall_s:
                    self._tell(f"the engine has ended no pass for {self._stall_s:g} s")
                elif seen and not num_stuck:
                    self._tell(self._wrong)
                if canary.done() and num_still * pause_s > self._period_s:
                    canary = group.create_task(self._send_canary(), name=CANARY)
        raise AssertionError("readiness ends by an exception")

    async def _send_canary(self) -> None:
        work = VerifyWork(CANARY, self._prompt, len(self._prompt), EMPTY_TREE, Sampling())
        try:
            verdict = await self._passes.verify(work)
        except ActorStopped:
            return  # the node is ending
        except Exception as error:  # noqa: BLE001 -- that is what it is sent to find out
            self._wrong = f"the engine fails at our own prompt: {cause_of(error)}"
            return
        finally:
            self._passes.release(CANARY)
            self.num_canaries += 1
        if self._first is None:
            self._first = verdict.bonus
        is_same = verdict.bonus == self._first or not self._is_exact
        said = f"the engine says {verdict.bonus} where it said {self._first} before"
        self._wrong = None if is_same else said

    def _tell(self, reason: str | None) -> None:
        if reason == self._told:
            return
        if reason is not None:
            self.num_stalls += 1
            logger.error("unavailable: reason=%s", reason)
        elif self.num_stalls:
            logger.info("available again")
        self._told = reason
        self._on_change(reason)
