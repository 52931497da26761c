"""A verifier whose passes are those of a whole committee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecosine.engine.base import KvUse, StepResult, VerifyWork
from edgecosine.errors import EngineError
from edgecosine.node.target.committee import Committee
from edgecosine.node.target.verifier import Verifier


class NoEngine:
    """The engine of a coordinator without weights: its context leaves no room to measure passes."""

    max_context = 0
    kv_use = KvUse()

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        """Raises EngineError: members run all passes."""
        raise EngineError(f"no weights were loaded for {len(batch)} works")

    def release(self, key: str) -> None:
        """There is no cache."""


class CommitteeVerifier(Verifier):
    """Batches sessions' works; a pass ends when the slowest member has judged them.

    The engine is the target's own if it is a member; its passes are profiled at first, and the
    committee's are learned.
    """

    def __init__(self, *, committee: Committee, **options: Any) -> None:
        super().__init__(**options)
        self._committee = committee

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[StepResult, float]:
        self._note_begun()
        return await self._committee.run(works, released)
