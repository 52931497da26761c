"""Engines that replay recorded texts, and the actors that charge virtual time for their calls.

Of the draft engine only the forward pass is replaced: tree growth, slots and the order of steps are
the engine's own. Of the target engine everything is replaced except the acceptance walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from edgecosine.balance.statistics import Statistics
from edgecosine.engine.base import (
    DraftResult,
    DraftWork,
    KvUse,
    Outcome,
    Prefilling,
    StepResult,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.draft.draft_progress import LogitRow, ScoredPosition
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.target.acceptance import walk
from edgecosine.errors import LabError
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.simulation.virtual_time import Core, Strand
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.verifier import Verifier

PREFILL_CHUNK = 64
"""As in `TransformerTarget`."""
LOOK_AHEAD = 16
"""Recorded tokens beyond the end of an answer, which the last tree may reach."""
PROFILED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
"""Batch sizes that a target measures before its first request, as in `engine.target.profile`."""


class RecitingTarget:
    """Generates the recorded texts; implements `TargetEngine`."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._cached: dict[str, int] = {}
        """Tokens that each session's cache holds."""

    @property
    def max_context(self) -> int:
        return self._texts.longest

    @property
    def kv_use(self) -> KvUse:
        return KvUse(num_used=sum(self._cached.values()))

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
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
        return StepResult(outcomes, num_rows)

    def release(self, key: str) -> None:
        self._cached.pop(key, None)

    def _judge(self, work: VerifyWork) -> VerificationResult:
        truth = self._texts.lists[self._texts.text_of(work.tokens)]
        length = len(work.tokens)
        verified = walk(work.tree, lambda _, accepted: truth[length + len(accepted)])
        self._cached[work.key] += len(verified.path)
        return verified


class _NoModel:
    """A model without a cache."""

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Do nothing: there is no cache."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Do nothing: there is no cache."""


class RecallingDrafter(TransformerDrafter):
    """Drafts as one of the recorded drafters did."""

    def __init__(self, texts: Texts, drafter: int, *, slots: int) -> None:
        super().__init__(cast(ForwardModel, _NoModel()), slots=slots, max_context=texts.longest)
        self._texts, self._drafter = texts, drafter

    def _evaluate(
        self, rows: RowBuilder, logit_rows: list[LogitRow], scored: list[ScoredPosition]
    ) -> None:
        for row in logit_rows:
            tree = row.progress.tree
            path = [tree.nodes.token[node] for node in tree.path(row.node)]
            tree.add_children(row.node, self._recall(row.progress.work.tokens, path))
        for token in scored:
            tokens, prompt = token.progress.work.tokens, token.progress.prompt
            prompt.is_top1.append(self._foretells(tokens, token.position))
            # The same for every token, so that their mean is the recorded value.
            text = self._texts.text_of(tokens)
            prompt.nll += float(self._texts.surprises[self._drafter, text])

    def _foretells(self, tokens: Sequence[int], position: int) -> bool:
        """Whether a token of the answer was the first guess; prompts were not recorded."""
        if position < len(self._texts.prompts[self._texts.text_of(tokens)]):
            return False
        return self._recall(tokens[:position], ()).tokens[0] == tokens[position]

    def _recall(self, tokens: Sequence[int], path: Sequence[int]) -> DraftTokens:
        return self._texts.guess(self._drafter, self._texts.text_of(tokens), tokens, path)


class SimulatedVerifier(Verifier):
    """The target's passes by a table of costs, and the rounds' time on its event loop."""

    def __init__(
        self,
        *,
        engine: RecitingTarget,
        statistics: Statistics,
        max_batch: int,
        costs: Costs,
        core: Core,
        strand: Strand,
        drafters_core: Core | None = None,
    ) -> None:
        super().__init__(
            engine=engine,
            thread=cast(Any, None),
            max_batch=max_batch,
            costs=statistics,
        )
        self._charges, self._core, self._strand = costs, core, strand
        self._drafters_core = drafters_core
        self.num_rows = self.num_nodes = self.num_verdicts = self.num_tokens = 0
        self.on_pass: Callable[[], None] = _nothing
        """Charge the event loop after each pass."""

    @property
    def is_beside_loop(self) -> bool:
        """Passes have a core of their own."""
        return True

    def submit(self, work: VerifyWork) -> asyncio.Future[VerificationResult]:
        """Verify; the event loop is charged for the session that continues."""
        verified = super().submit(work)
        verified.add_done_callback(lambda _: self._strand.charge(self._charges.round_s))
        return verified

    async def _profile(self) -> dict[int, float]:
        return {rows: self._charges.target_pass(rows) for rows in PROFILED}

    async def _run_engine(
        self, works: list[VerifyWork], released: list[str]
    ) -> tuple[StepResult, float]:
        self._note_begun()
        for key in released:
            self._engine.release(key)
        result = self._engine.step(works)
        await _pause(self._strand, self._charges.hop_s)
        started = now()
        await self._pass_time(self._charges.target_pass(result.num_rows, len(works)))
        self._count(works, result)
        return result, now() - started

    async def _pass_time(self, pass_s: float) -> None:
        """Use the processor for a pass, and for as long as drafters that compute delay it."""
        rival = self._drafters_core
        before_s = rival.used_s if rival else 0.0
        await self._core.spend(pass_s)
        if rival and self._charges.contention:
            await self._core.spend(self._charges.contention * (rival.used_s - before_s))

    def _count(self, works: Sequence[VerifyWork], result: StepResult) -> None:
        self.num_rows += result.num_rows
        for work, outcome in zip(works, result.outcomes, strict=True):
            if isinstance(outcome, VerificationResult):
                self.num_verdicts += 1
                self.num_nodes += len(work.tree)
                self.num_tokens += len(outcome.path) + 1
        self.on_pass()


class SimulatedDraftWorker(DraftWorker):
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
        proposals = await self._grow(works, self._interruption(len(works))) if works else []
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
                ends = now() + self._charges.least_step_s
                await self._core.spend(self._charges.drafter_step(rows))
                await _pause(self._strand, max(0.0, ends - now()))


def _nothing() -> None:
    """Ignores the count of passes."""


async def _pause(strand: Strand, seconds: float) -> None:
    if seconds:
        await strand.pause(seconds)


def check_room(texts: Texts, max_tokens: int) -> None:
    """Raises LabError when the recorded answers are too short."""
    if max_tokens + LOOK_AHEAD > texts.longest_answer:
        raise LabError(
            f"answers of {texts.longest_answer - LOOK_AHEAD} tokens at most are recorded"
        )
