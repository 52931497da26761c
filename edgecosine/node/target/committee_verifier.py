"""A verifier whose passes are those of a whole committee."""

from __future__ import annotations

from typing import Any

from edgecosine.engine.base import StepResult, VerifyWork
from edgecosine.node.target.committee import Committee
from edgecosine.node.target.verifier import Verifier


class CommitteeVerifier(Verifier):
    """Batches sessions' works; a pass ends when the slowest member has judged them.

    The engine is the target's own, which serves as a member; its passes are profiled at first, and
    the committee's are learned.
    """

    def __init__(self, *, committee: Committee, **options: Any) -> None:
        super().__init__(**options)
        self._committee = committee

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[StepResult, float]:
        return await self._committee.run(works, released)
