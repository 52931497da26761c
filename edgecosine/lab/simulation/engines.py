"""Models that say what was recorded, and the actors that take virtual time for their calls.

Of the draft engine only the forward pass is replaced: growing, slots and the order of steps are the
engine's own. Of the target's, everything but the walk: it decides nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from edgecosine.balance.planner import Planner
from edgecosine.engine.base import (
    DraftResult,
    DraftWork,
    Outcome,
    PassResult,
    Prefilling,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.drafter import LogitRow, ScoredRow, TransformerDrafter
from edgecosine.engine.forward_pass import PassModel
from edgecosine.engine.target.acceptance import walk
from edgecosine.errors import LabError
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.texts import NUM_PROMPT, Texts
from edgecosine.lab.simulation.virtual_time import Core, Strand
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.verifier import Verifier

PREFILL_CHUNK = 64
"""As in `TransformerTarget`."""
LOOK_AHEAD = 16
"""Recorded tokens behind the end of an answer: a last tree may reach so far."""
PROFILED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
"""Rows that a target measures before its first request, as in `engine.profile`."""


class RecitingTarget:
    """Says the recorded texts; implements `TargetEngine`."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._cached: dict[str, int] = {}
        """Tokens that each session's cache holds."""

    @property
    def max_context(self) -> int:
        return len(self._texts.lists[0])

    def step(self, batch: Sequence[VerifyWork]) -> PassResult:
        outcomes: list[Outcome] = []
        num_rows = 0
        for work in batch:
            cached = min(self._cached.get(work.key, 0), len(work.tokens) - 1)
            fed = min(PREFILL_CHUNK, len(work.tokens) - cached)
            self._cached[work.key] = cached + fed
            num_rows += fed
            if remaining := len(work.tokens) - cached - fed:
                outcomes.append(Prefilling(remaining))
                continue
            num_rows += len(work.tree)
            outcomes.append(self._judge(work))
        return PassResult(outcomes, num_rows)

    def release(self, key: str) -> None:
        self._cached.pop(key, None)

    def _judge(self, work: VerifyWork) -> VerificationResult:
        truth = self._texts.lists[self._texts.text_of(work.tokens)]
        length = len(work.tokens)
        verdict = walk(work.tree, lambda _, accepted: truth[length + len(accepted)])
        self._cached[work.key] += len(verdict.path)
        return verdict


class _NoModel:
    """Has no cache whose cells could be moved."""

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Nothing is to be moved."""


class RecallingDrafter(TransformerDrafter):
    """Guesses what one of the recorded drafters did."""

    def __init__(self, texts: Texts, drafter: int, *, slots: int) -> None:
        super().__init__(cast(PassModel, _NoModel()), slots=slots, max_context=len(texts.lists[0]))
        self._texts, self._drafter = texts, drafter

    def _evaluate(self, rows: RowBuilder, heads: list[LogitRow], told: list[ScoredRow]) -> None:
        for head in heads:
            growth = head.drafting.growth
            path = [growth.nodes.token[node] for node in growth.path(head.node)]
            growth.add_guesses(head.node, self._recall(head.drafting.work.tokens, path))
        for token in told:
            tokens, reading = token.drafting.work.tokens, token.drafting.reading
            reading.top1_matches.append(self._foretells(tokens, token.position))
            # The same for every token, so that their mean is what was recorded.
            text = self._texts.text_of(tokens)
            reading.nll += float(self._texts.surprises[self._drafter, text])

    def _foretells(self, tokens: Sequence[int], position: int) -> bool:
        """Whether a token of the answer was the first guess; of prompts nothing was recorded."""
        if position < NUM_PROMPT:
            return False
        return self._recall(tokens[:position], ()).tokens[0] == tokens[position]

    def _recall(self, tokens: Sequence[int], path: Sequence[int]) -> DraftTokens:
        return self._texts.guess(self._drafter, self._texts.text_of(tokens), tokens, path)


class SimulatedVerifying(Verifier):
    """The target's passes by a table of costs, and what its event loop spends on a round."""

    def __init__(
        self,
        *,
        engine: RecitingTarget,
        balancer: Planner,
        max_batch: int,
        costs: Costs,
        core: Core,
        strand: Strand,
    ) -> None:
        super().__init__(
            engine=engine,
            thread=cast(Any, None),
            max_batch=max_batch,
            costs=balancer,
        )
        self._charges, self._core, self._strand = costs, core, strand
        self.round_s = costs.round_s
        """What a verdict's session goes on to spend on the event loop."""
        self.num_rows = self.num_nodes = self.num_verdicts = self.num_tokens = 0
        self.on_pass: Callable[[], None] = _nothing
        """Called once more after each pass."""

    async def verify(self, work: VerifyWork) -> VerificationResult:
        """The target's verdict; whoever goes on with it keeps the event loop busy."""
        verdict = await super().verify(work)
        self._strand.charge(self.round_s)
        return verdict

    async def _profile(self) -> dict[int, float]:
        return {rows: self._charges.target_pass(rows) for rows in PROFILED}

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[PassResult, float]:
        for key in released:
            self._engine.release(key)
        result = self._engine.step(works)
        await _pause(self._strand, self._charges.hop_s)
        started = now()
        await self._core.spend(self._charges.target_pass(result.num_rows, len(works)))
        self._count(works, result)
        return result, now() - started

    def _count(self, works: Sequence[VerifyWork], result: PassResult) -> None:
        self.num_rows += result.num_rows
        for work, outcome in zip(works, result.outcomes, strict=True):
            if isinstance(outcome, VerificationResult):
                self.num_verdicts += 1
                self.num_nodes += len(work.tree)
                self.num_tokens += len(outcome.path) + 1
        self.on_pass()


class SimulatedDrafting(DraftWorker):
    """A drafter's steps by a table of costs."""

    def __init__(
        self,
        *,
        engine: RecallingDrafter,
        max_batch: int,
        costs: Costs,
        core: Core,
        strand: Strand,
    ) -> None:
        super().__init__(engine=engine, thread=cast(Any, None), max_batch=max_batch)
        self._recalling, self._charges, self._core, self._strand = engine, costs, core, strand

    async def _run_engine(
        self, works: list[DraftWork], released: list[str]
    ) -> tuple[list[DraftResult], float]:
        for key in released:
            self._engine.release(key)
        await _pause(self._strand, self._charges.hop_s)
        started = now()
        proposals = await self._grow(works, lambda: self._is_awaited) if works else []
        return proposals, now() - started

    async def _grow(
        self, works: list[DraftWork], is_awaited: Callable[[], bool]
    ) -> list[DraftResult]:
        await self._core.spend(len(works) * self._charges.work_s)
        steps = self._recalling.steps(works, is_awaited)
        while True:
            try:
                rows = next(steps)
            except StopIteration as done:
                return cast(list[DraftResult], done.value)
            if rows:
                await self._core.spend(self._charges.drafter_step(rows))


def _nothing() -> None:
    """Nobody counts passes."""


async def _pause(strand: Strand, seconds: float) -> None:
    if seconds:
        await strand.pause(seconds)


def check_room(texts: Texts, max_tokens: int) -> None:
    """Raises LabError when the recorded answers are too short."""
    if max_tokens + LOOK_AHEAD > texts.longest_answer:
        raise LabError(
            f"answers of {texts.longest_answer - LOOK_AHEAD} tokens at most are recorded"
        )
