"""Checks whether the target can answer, by its engine's forward passes.

While there is work, completed passes show that the engine runs. An idle engine gets a canary: it
draws one token after a fixed prompt. The target is unavailable if its engine holds work and
completes no pass, or if a bitwise exact engine draws another token than before.
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
"""Time without a pass after which a canary is sent."""
_CHECKS: Final = 20
"""Checks of the engine in the shorter of the period and the stall timeout."""

logger = logging.getLogger(__name__)


class Passes(Protocol):
    """Runs the engine's passes."""

    num_passes: int

    @property
    def num_held(self) -> int:
        """Number of works that wait for a pass or are in one."""

    async def verify(self, work: VerifyWork) -> VerificationResult:
        """Raises ActorStopped when the engine has ended, and its error with this work."""

    def release(self, key: str) -> None:
        """The work's sequence has ended."""


class EngineWatchdog:
    """Watches one engine. `on_change` gets the reason why it cannot answer; None if it can. `cause`
    returns why no pass ends, where it is known."""

    def __init__(
        self,
        *,
        passes: Passes,
        prompt: Sequence[int],
        is_exact: bool,
        on_change: Callable[[str | None], None],
        cause: Callable[[], str | None] = lambda: None,
        period_s: float = PERIOD_S,
        stall_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._passes, self._prompt, self._is_exact = passes, tuple(prompt), is_exact
        self._on_change, self._period_s, self._stall_s = on_change, period_s, stall_s
        self._cause = cause
        self._reason: str | None = "the engine has not answered yet"
        self._canary_failure: str | None = None
        self._first_token: int | None = None
        """Of the first canary."""
        self.num_canaries = 0
        self.num_stalls = 0

    def __repr__(self) -> str:
        return f"<EngineWatchdog {self._reason or 'ready'} [{self.num_canaries} canaries]>"

    @property
    def reason(self) -> str | None:
        """Why requests cannot be answered now; None if they can."""
        return self._reason

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        pause_s = min(self._period_s, self._stall_s) / _CHECKS
        async with asyncio.TaskGroup() as group:
            canary = group.create_task(self._send_canary(), name=CANARY)
            seen = num_still = num_stuck = 0
            while True:
                await asyncio.sleep(pause_s)
                # Checks are counted, not seconds, so that a pause of this process is no stall.
                is_moving = self._passes.num_passes != seen
                seen = self._passes.num_passes
                num_still = 0 if is_moving else num_still + 1
                num_stuck = 0 if is_moving or not self._passes.num_held else num_stuck + 1
                if seen and num_stuck * pause_s > self._stall_s:
                    late = f"the engine has completed no pass for {self._stall_s:g} s"
                    self._report(self._cause() or late)
                elif seen and not num_stuck:
                    self._report(self._canary_failure)
                if canary.done() and num_still * pause_s > self._period_s:
                    canary = group.create_task(self._send_canary(), name=CANARY)
        raise AssertionError("the watchdog ends by cancellation")

    async def _send_canary(self) -> None:
        work = VerifyWork(CANARY, self._prompt, len(self._prompt), EMPTY_TREE, Sampling())
        try:
            result = await self._passes.verify(work)
        except ActorStopped:
            return  # the node is ending
        except Exception as error:  # noqa: BLE001 -- any error is a failed canary
            self._canary_failure = f"the engine fails at the canary: {cause_of(error)}"
            return
        finally:
            self._passes.release(CANARY)
            self.num_canaries += 1
        if self._first_token is None:
            self._first_token = result.bonus
        is_same = result.bonus == self._first_token or not self._is_exact
        failure = f"the engine draws {result.bonus} where it drew {self._first_token} before"
        self._canary_failure = None if is_same else failure

    def _report(self, reason: str | None) -> None:
        if reason == self._reason:
            return
        if reason is not None:
            self.num_stalls += 1
            logger.error("unavailable: reason=%s", reason)
        elif self.num_stalls:
            logger.info("available again")
        self._reason = reason
        self._on_change(reason)
