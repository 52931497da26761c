"""Engines that replay recorded texts, and the actors that charge virtual time for their calls.

The draft engine is the real one with another forward pass: tree growth, slots and the order of
steps are its own. The target engine has only the acceptance walk of the real one.
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
"""Prompt tokens of a pass, as in `TransformerTarget`."""
LOOK_AHEAD = 16
"""Recorded tokens beyond the end of an answer, since its last tree may extend beyond it."""
PROFILED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
"""Batch sizes that a target measures before its first request, as in `engine.target.profile`."""


class RecordedTarget:
    """A `TargetEngine` that generates the recorded texts."""

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


class RecordedDrafter(TransformerDrafter):
    """A draft engine whose drafts are those of a recorded drafter."""

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
            prompt.is_top1.append(self._is_top1(tokens, token.position))
            # The same for every token, so that their mean is the recorded value.
            text = self._texts.text_of(tokens)
            prompt.nll += float(self._texts.prompt_scores[self._drafter, text])

    def _is_top1(self, tokens: Sequence[int], position: int) -> bool:
        """Whether a token of the answer was the drafter's first guess; False in a prompt, for which
        no guesses are recorded."""
        if position < len(self._texts.prompts[self._texts.text_of(tokens)]):
            return False
        return self._recall(tokens[:position], ()).tokens[0] == tokens[position]

    def _recall(self, tokens: Sequence[int], path: Sequence[int]) -> DraftTokens:
        return self._texts.guess(self._drafter, self._texts.text_of(tokens), tokens, path)


class SimulatedVerifier(Verifier):
    """A verifier whose passes take the time of a table of costs, and whose rounds are charged to
    the target's event loop."""

    def __init__(
        self,
        *,
        engine: RecordedTarget,
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
        self.num_rows = self.num_nodes = self.num_rounds = self.num_tokens = 0
        self.on_pass: Callable[[], None] = _nothing
        """Called after each pass."""

    @property
    def is_beside_loop(self) -> bool:
        """Always True: passes do not run in the event loop."""
        return True

    def submit(self, work: VerifyWork) -> asyncio.Future[VerificationResult]:
        """As `Verifier.submit`; the event loop is charged for the round that follows."""
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
                self.num_rounds += 1
                self.num_nodes += len(work.tree)
                self.num_tokens += len(outcome.path) + 1
        self.on_pass()


class SimulatedDraftWorker(DraftWorker):
    """A draft worker whose steps take the time of a table of costs."""

    def __init__(
        self,
        *,
        engine: RecordedDrafter,
        max_batch: int,
        costs: Costs,
        core: Core,
        strand: Strand,
    ) -> None:
        super().__init__(engine=engine, thread=cast(Any, None), max_batch=max_batch)
        self._recorded, self._charges, self._core, self._strand = engine, costs, core, strand

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
        self, works: list[DraftWork], is_interrupted: Callable[[int], bool]
    ) -> list[DraftResult]:
        await self._core.spend(len(works) * self._charges.work_s)
        steps = self._recorded.steps(works, is_interrupted)
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
    """The default of `on_pass`."""


async def _pause(strand: Strand, seconds: float) -> None:
    if seconds:
        await strand.pause(seconds)


def check_length(texts: Texts, max_tokens: int) -> None:
    """Raises LabError when the recorded answers are too short."""
    if max_tokens + LOOK_AHEAD > texts.longest_answer:
        raise LabError(
            f"answers of {texts.longest_answer - LOOK_AHEAD} tokens at most are recorded"
        )
